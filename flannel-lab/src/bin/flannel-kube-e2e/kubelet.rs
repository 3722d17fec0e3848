//! The kubelet's part: makes a container of what the `DaemonSet` says and runs it on a node.
//!
//! The container is a root directory with the machine's programs in it, the agent where the image has it, and
//! the volumes where the manifest mounts them. So the agent gets its arguments, variables, files, capabilities
//! and token as on a real node, and nothing else: what a runtime makes read-only is read-only here.

use std::fs;
use std::iter;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_lab::agent::{Agent, AgentBuilder};
use flannel_lab::kube::real::ApiServer;
use flannel_lab::node::Node;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::Fallible;
use crate::manifest::NAMESPACE;

/// Everything on disk. `/run` is the sandbox's own.
const FOLDER: &str = "/run/flannel-kube-e2e";
/// The `DaemonSet` and its account.
const DAEMON_SET: &str = "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds";
const ACCOUNT: &str = "flannel";
/// Where a token is, in every container.
const SECRETS: &str = "/run/secrets/kubernetes.io/serviceaccount";
/// Where the image has the agent.
const FLANNELD: &str = "/opt/bin/flanneld";
/// The one variable that images have.
const IMAGE_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the machine lends the image: programs, libraries and the kernel's files.
const LENT: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev", "/etc/alternatives"];

/// A node's kubelet, as far as the agent can tell.
#[derive(Debug)]
pub(crate) struct Kubelet {
    node: String,
    /// The pod's name; another one each time.
    pods: u32,
    /// Tokens handed out so far.
    tokens: u32,
    /// How the container is started.
    container: Option<AgentBuilder>,
}

impl Kubelet {
    /// The kubelet of a node.
    pub(crate) fn of(node: &Node) -> Self {
        Self { node: node.name().to_owned(), pods: 0, tokens: 0, container: None }
    }

    /// Where the node has a path that the manifest mounts from it.
    pub(crate) fn host_path(&self, path: &str) -> PathBuf {
        self.folder().join("host").join(path.trim_start_matches('/'))
    }

    /// Makes the pod and starts its container.
    pub(crate) fn run(&mut self, node: &Node, api: &ApiServer, flanneld: &Path) -> Fallible<Agent> {
        let template = api.get(DAEMON_SET)?["spec"]["template"].take();
        let container = container(&template)?;
        self.pods += 1;
        let pod = format!("kube-flannel-ds-{}-{}", self.node, self.pods);
        self.make_pod(api, &pod, &template)?;
        let root = self.folder().join(format!("root{}", self.pods));
        Self::fill(&root, flanneld)?;
        self.mount_volumes(&root, api, &template, container)?;
        self.put_token(api)?;
        let secrets = self.folder().join("secrets");
        bind(&secrets, &inside(&root, SECRETS))?;
        // As for every container that isn't privileged.
        for path in [root.clone(), root.join("sys"), root.join("proc/sys")] {
            make_read_only(&path)?;
        }

        open_run(&root, &template)?;
        let mut agent = node.agent("flanneld", "chroot").arg(&root);
        let capabilities = words(&container["securityContext"]["capabilities"]["add"]);
        let capabilities = capabilities.map(|name| format!("+{}", name.to_lowercase()));
        let capabilities = iter::once("-all".to_owned()).chain(capabilities).collect::<Vec<_>>().join(",");
        agent = agent.args(["setpriv", "--inh-caps=-all"]).args(identity(&container["securityContext"]));
        agent = agent.arg(format!("--bounding-set={capabilities}")).arg("--");
        // Nothing of our environment, such as where we have certificates.
        agent = agent.args(["env", "-i", IMAGE_PATH]);
        // A service address would need a kube-proxy, so it is the server's own.
        let address = api.address();
        agent = agent.arg(format!("KUBERNETES_SERVICE_HOST={}", address.ip()));
        agent = agent.arg(format!("KUBERNETES_SERVICE_PORT={}", address.port()));
        for (name, value) in self.variables(container, &pod)? {
            agent = agent.arg(format!("{name}={value}"));
        }
        agent = agent.args(words(&container["command"])).args(words(&container["args"]));
        let started = agent.start()?;
        self.container = Some(agent);
        Ok(started)
    }

    /// Starts the container of the same pod once more, for which nobody is asked.
    pub(crate) fn run_again(&self) -> Fallible<Agent> {
        Ok(self.container.as_ref().ok_or("it never ran")?.start()?)
    }

    /// Puts a new token in place of the one before, as the kubelet does: by one rename. Returns what to
    /// [`withdraw`] it by.
    pub(crate) fn put_token(&mut self, api: &ApiServer) -> Fallible<String> {
        self.tokens += 1;
        let secret = format!("token-{}-{}", self.node, self.tokens);
        let object = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": secret } });
        api.create(&secrets_path(), &object)?;
        let token = api.token(NAMESPACE, ACCOUNT, Some(&secret))?;
        let folder = self.folder().join("secrets");
        let version = format!("..{}", self.tokens);
        fs::create_dir_all(folder.join(&version))?;
        let files = [
            ("token", token),
            ("namespace", NAMESPACE.to_owned()),
            ("ca.crt", fs::read_to_string(api.ca())?),
        ];
        for (name, text) in files {
            fs::write(folder.join(&version).join(name), text)?;
            let link = folder.join(name);
            if !link.is_symlink() {
                symlink(Path::new("..data").join(name), link)?;
            }
        }
        symlink(&version, folder.join("..data_tmp"))?;
        fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
        Ok(secret)
    }

    /// The token in place now.
    pub(crate) fn token(&self) -> Fallible<String> {
        Ok(fs::read_to_string(self.folder().join("secrets/token"))?)
    }

    /// What the token in place was bound to.
    pub(crate) fn bound_to(&self) -> String {
        format!("token-{}-{}", self.node, self.tokens)
    }

    fn make_pod(&self, api: &ApiServer, name: &str, template: &Value) -> Fallible<()> {
        let mut spec = template["spec"].clone();
        spec["nodeName"] = json!(self.node);
        let metadata = json!({ "name": name, "labels": template["metadata"]["labels"] });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        api.create("/api/v1/namespaces/kube-flannel/pods", &pod)?;
        Ok(())
    }

    /// The image.
    fn fill(root: &Path, flanneld: &Path) -> Fallible<()> {
        fs::create_dir_all(root)?;
        mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        for lent in LENT.map(Path::new).into_iter().filter(|lent| lent.exists()) {
            let at = inside(root, lent);
            fs::create_dir_all(at.parent().ok_or("the root has no parent")?)?;
            if lent.is_symlink() {
                symlink(fs::read_link(lent)?, at)?;
            } else {
                bind(lent, &at)?;
            }
        }
        for folder in ["tmp", "var", "run"] {
            fs::create_dir_all(root.join(folder))?;
        }
        symlink("/run", root.join("var/run"))?;
        let at = inside(root, FLANNELD);
        fs::create_dir_all(at.parent().ok_or("the agent has a folder")?)?;
        fs::copy(flanneld, &at)?;
        // As the Dockerfile does.
        success(Command::new("setcap").arg("cap_net_admin,cap_net_raw=p").arg(at))
    }

    fn mount_volumes(
        &self,
        root: &Path,
        api: &ApiServer,
        template: &Value,
        container: &Value,
    ) -> Fallible<()> {
        let volumes = template["spec"]["volumes"].as_array().ok_or("the pod has no volumes")?;
        for mounted in container["volumeMounts"].as_array().into_iter().flatten() {
            let volume = volumes.iter().find(|volume| volume["name"] == mounted["name"]);
            let volume = volume.ok_or_else(|| format!("no volume {}", mounted["name"]))?;
            let at = mounted["mountPath"].as_str().ok_or("a mount without a path")?;
            let source = if let Some(path) = volume["hostPath"]["path"].as_str() {
                let source = self.host_path(path);
                if volume["hostPath"]["type"] == "FileOrCreate" {
                    fs::create_dir_all(source.parent().ok_or("a file has a folder")?)?;
                    fs::File::options().append(true).create(true).open(&source)?;
                } else {
                    fs::create_dir_all(&source)?;
                }
                source
            } else if let Some(name) = volume["configMap"]["name"].as_str() {
                self.config_map(api, name)?
            } else {
                return Err(format!("a volume of a kind not known here: {volume}").into());
            };
            bind(&source, &inside(root, at))?;
        }
        Ok(())
    }

    fn config_map(&self, api: &ApiServer, name: &str) -> Fallible<PathBuf> {
        let map = api.get(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{name}"))?;
        let folder = self.folder().join(name);
        fs::create_dir_all(&folder)?;
        for (key, value) in map["data"].as_object().into_iter().flatten() {
            fs::write(folder.join(key), value.as_str().unwrap_or_default())?;
        }
        Ok(folder)
    }

    /// The container's variables, with what the downward API fills in.
    fn variables(&self, container: &Value, pod: &str) -> Fallible<Vec<(String, String)>> {
        let mut variables = Vec::new();
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().ok_or("a variable without a name")?;
            let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            let value = match (variable["value"].as_str(), field) {
                (Some(value), _) => value,
                (None, Some("metadata.name")) => pod,
                (None, Some("metadata.namespace")) => NAMESPACE,
                (None, Some("spec.nodeName")) => &self.node,
                (None, None) => "",
                (None, Some(field)) => return Err(format!("{name} from {field}: not known here").into()),
            };
            variables.push((name.to_owned(), value.to_owned()));
        }
        Ok(variables)
    }

    fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.node)
    }
}

/// Takes a token back.
pub(crate) fn withdraw(api: &ApiServer, secret: &str) -> Fallible<()> {
    api.delete(&format!("{}/{secret}", secrets_path()))?;
    Ok(())
}

fn secrets_path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets")
}

/// Runs the init container that opens what is in `/run` to the agent's group; it has the agent's volumes.
fn open_run(root: &Path, template: &Value) -> Fallible<()> {
    let containers = template["spec"]["initContainers"].as_array().into_iter().flatten();
    for container in containers.filter(|container| container["name"] == "open-run") {
        let mut init = Command::new("chroot");
        init.arg(root).args(["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]);
        success(init.args(words(&container["command"])).args(words(&container["args"])))?;
    }
    Ok(())
}

/// Flags of setpriv(1) for who a container is, and whether it may become more.
fn identity(context: &Value) -> Vec<String> {
    let mut flags = Vec::new();
    if let Some(user) = context["runAsUser"].as_u64() {
        let group = context["runAsGroup"].as_u64().unwrap_or(0);
        flags.extend([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    }
    if context["allowPrivilegeEscalation"] == false {
        flags.push("--no-new-privs".to_owned());
    }
    flags
}

fn success(command: &mut Command) -> Fallible<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// The agent's container: the first.
fn container(template: &Value) -> Fallible<&Value> {
    let container = &template["spec"]["containers"][0];
    if container["command"][0] == FLANNELD {
        return Ok(container);
    }
    Err(format!("the DaemonSet's first container doesn't run {FLANNELD}: {container}").into())
}

fn words(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// A path of the container as we see it.
fn inside(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    // `/var/run` is a link to `/run` in the container; followed from here it would be ours.
    let path = path.strip_prefix("/var").ok().filter(|rest| rest.starts_with("run")).unwrap_or(path);
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Shows a file or folder at another place, with what is mounted below it.
fn bind(source: &Path, at: &Path) -> Fallible<()> {
    if source.is_dir() {
        fs::create_dir_all(source).and_then(|()| fs::create_dir_all(at))?;
    } else {
        fs::create_dir_all(at.parent().ok_or("a file has a folder")?)?;
        fs::write(at, "")?;
    }
    mount(Some(source), at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|error| format!("mounting {} at {}: {error}", source.display(), at.display()).into())
}

fn make_read_only(path: &Path) -> Fallible<()> {
    // A folder of a mount can't be read-only by itself, so it becomes a mount.
    let bind = MsFlags::MS_BIND;
    let mounted =
        mount(Some(path), path, None::<&str>, bind | MsFlags::MS_REC, None::<&str>).and_then(|()| {
            mount(
                None::<&str>,
                path,
                None::<&str>,
                bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
                None::<&str>,
            )
        });
    mounted.map_err(|error| format!("making {} read-only: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_who_its_context_says() {
        let user = json!({ "runAsUser": 65534, "runAsGroup": 0, "allowPrivilegeEscalation": true });
        assert_eq!(identity(&user), ["--reuid=65534", "--regid=0", "--clear-groups"]);
        assert_eq!(identity(&json!({ "allowPrivilegeEscalation": false })), ["--no-new-privs"]);
    }

    #[test]
    fn paths_of_the_container_stay_below_its_root() {
        let root = Path::new("/r");
        assert_eq!(inside(root, "/run/flannel"), Path::new("/r/run/flannel"));
        assert_eq!(inside(root, "/var/run/x"), Path::new("/r/run/x"));
        assert_eq!(inside(root, "/etc/kube-flannel/"), Path::new("/r/etc/kube-flannel/"));
    }
}
