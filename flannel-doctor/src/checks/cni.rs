//! The container runtime's side: configs, plugins, the pods' bridge.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip, is_denied};
use crate::host::Files;

/// What runtimes read as a config, by its ending; the first by name counts.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// How long a plugin may take for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A config as a runtime sees it.
#[derive(Debug, Clone)]
struct CniConfig {
    name: String,
    /// The content, or what is wrong with it.
    content: Result<Value, String>,
    /// Whether this process may not read it, which says nothing of the content.
    is_denied: bool,
}

/// The subnet file that the plugin reads unless it is told.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

impl CniConfig {
    fn read(files: &Files, folder: &Path) -> Vec<Self> {
        let names = files.names(folder).into_iter().filter_map(|name| name.into_string().ok());
        let is_config = |name: &String| {
            Path::new(name).extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
        };
        let config = |name: String| {
            let text = files.text(folder.join(&name));
            let is_denied = text.as_ref().is_err_and(|error| is_denied(error));
            let text = text.map_err(|error| error.to_string());
            // A parser's message has no more of the text than line and column.
            let content = text.and_then(|text| {
                serde_json::from_str(&text)
                    .map_err(|error| format!("line {}, column {}: no JSON", error.line(), error.column()))
            });
            Self { name, content, is_denied }
        };
        names.filter(is_config).map(config).collect()
    }

    /// The plugins of a conflist, or the one of a config.
    fn plugins(&self) -> Vec<&Value> {
        let Ok(content) = &self.content else { return Vec::new() };
        match content["plugins"].as_array() {
            Some(all) => all.iter().collect(),
            None => vec![content],
        }
    }

    fn flannel(&self) -> Option<&Value> {
        self.plugins().into_iter().find(|plugin| plugin["type"] == "flannel")
    }

    /// The subnet file that flannel's plugin reads by it; `None` if it is no config of flannel.
    fn subnet_file(&self) -> Option<&Path> {
        Some(Path::new(self.flannel()?["subnetFile"].as_str().unwrap_or(SUBNET_FILE)))
    }

    fn version(&self) -> &str {
        self.content.as_ref().ok().and_then(|content| content["cniVersion"].as_str()).unwrap_or("0.1.0")
    }

    /// The programs that a pod needs, by this config.
    fn programs(&self) -> Vec<String> {
        let types = self.plugins().into_iter().filter_map(|plugin| plugin["type"].as_str());
        let mut programs: Vec<String> = types.map(str::to_owned).collect();
        if let Some(flannel) = self.flannel() {
            let delegate = flannel["delegate"]["type"].as_str().unwrap_or("bridge");
            let ipam =
                flannel["delegate"]["ipam"]["type"].as_str().or_else(|| flannel["ipam"]["type"].as_str());
            programs.extend([delegate, ipam.unwrap_or("host-local"), "loopback"].map(str::to_owned));
        }
        programs
    }

    /// The bridge of the pods.
    fn bridge(&self) -> &str {
        self.flannel().and_then(|flannel| flannel["delegate"]["bridge"].as_str()).unwrap_or("cni0")
    }
}

/// All configs; that there are none is a reason to skip, since Docker and systemd-nspawn need none.
async fn configs(facts: &Facts) -> Result<Vec<CniConfig>, Skip> {
    let folder = facts.places.cni_conf_dir.clone();
    let look = move |files: &Files| {
        files.seen(&folder)?;
        Ok::<_, Skip>(CniConfig::read(files, &folder))
    };
    let configs = facts.host.look(look).await??;
    if configs.is_empty() {
        let folder = facts.places.cni_conf_dir.display();
        return Err(Skip::new(format!(
            "there is no CNI config in {folder}; `flanneld install-cni` makes one, if this host runs pods"
        )));
    }
    Ok(configs)
}

/// The place of flannel's config among all: that which reads our subnet file, else the first. A host with two agents has one
/// of each.
fn ours(facts: &Facts, configs: &[CniConfig]) -> Result<usize, Skip> {
    let is_ours = |config: &CniConfig| config.subnet_file() == Some(facts.places.subnet_file.as_path());
    let ours = configs.iter().position(is_ours);
    ours.or_else(|| configs.iter().position(|config| config.flannel().is_some())).ok_or_else(|| {
        let denied = configs.iter().find(|config| config.is_denied);
        denied.map_or_else(|| Skip::new("no CNI config names the plugin flannel"), unread)
    })
}

fn unread(config: &CniConfig) -> Skip {
    let why = config.content.as_ref().err().map_or("", String::as_str);
    Skip::denied(format!("the CNI config {} can't be read: {why}", config.name))
}

/// The config of flannel.
async fn of_flannel(facts: &Facts) -> Result<CniConfig, Skip> {
    let mut configs = configs(facts).await?;
    let place = ours(facts, &configs)?;
    Ok(configs.swap_remove(place))
}

/// The subnet file that a config's plugin reads; empty if it is none of flannel's.
fn config_file(config: &CniConfig) -> &Path {
    config.subnet_file().unwrap_or(Path::new(""))
}

pub(super) async fn config(facts: &Facts) -> Checked {
    let configs = configs(facts).await?;
    let folder = facts.places.cni_conf_dir.display();
    let broken = configs.iter().filter(|config| !config.is_denied).filter_map(|config| {
        let why = config.content.as_ref().err()?;
        Some(Finding::failure(
            format!("{folder}/{} can't be read: {why}", config.name),
            "correct it or move it away: runtimes may stop at it",
        ))
    });
    let mut found: Vec<Finding> = broken.collect();
    let denied = configs.iter().find(|config| config.is_denied);
    let place = ours(facts, &configs).ok();
    match place.and_then(|place| Some((&configs[place], configs[place].subnet_file()?))) {
        None if denied.is_some() => {}
        None => found.push(Finding::failure(
            format!("none of {} configs in {folder} names the plugin flannel", configs.len()),
            "`flanneld install-cni` makes one",
        )),
        Some((config, read)) if facts.places.subnet_file != read => {
            let (read, own) = (read.display(), facts.places.subnet_file.display());
            let seen = format!("{} lets the plugin read {read}, and the agent writes {own}", config.name);
            let is_others = facts.others.iter().any(|other| other.process.subnet_file == config_file(config));
            found.push(if is_others {
                Finding::note(
                    format!("{seen}; another agent runs here and writes {read}"),
                    format!("if this network should have pods of its own, give it a config with subnetFile {own}"),
                )
            } else {
                Finding::failure(
                    seen,
                    "give both the same: subnetFile of the config, --subnet-file of the agent (and of the doctor)",
                )
            });
        }
        Some(_) => {}
    }
    if let (Some(denied), true) = (denied, found.is_empty()) {
        return Err(unread(denied));
    }
    Ok(Finding::of_all(found, || {
        format!(
            "{folder}: {}",
            configs.iter().map(|config| config.name.as_str()).collect::<Vec<_>>().join(", ")
        )
    }))
}

pub(super) async fn order(facts: &Facts) -> Checked {
    let configs = configs(facts).await?;
    let place = ours(facts, &configs)?;
    let (first, ours) = (&configs[0].name, &configs[place].name);
    Ok(
        if place > 0 && facts.others.iter().any(|other| other.process.subnet_file == config_file(&configs[0]))
        {
            Finding::note(
                format!(
                    "{first} comes before {ours}, and is of another agent of this host, which pods get their network from"
                ),
                format!("give {ours} a name that comes first, if pods should get this agent's network"),
            )
        } else if place > 0 {
            Finding::failure(
                format!(
                    "{first} comes before {ours}: runtimes take the first config by name, and pods get another network"
                ),
                format!("move {first} away, or give flannel's config a name that comes first"),
            )
        } else {
            Finding::ok(format!("{ours} is the first of {} configs", configs.len()))
        },
    )
}

pub(super) async fn plugins(facts: &Facts) -> Checked {
    use std::os::unix::fs::PermissionsExt as _;

    let config = of_flannel(facts).await?;
    let (folder, programs) = (facts.places.cni_bin_dir.clone(), config.programs());
    let look = move |files: &Files| {
        let state = |program: String| match files.metadata(folder.join(&program)) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => (program, None),
            Ok(_) => (program, Some("can't be executed")),
            Err(_) => (program, Some("is missing")),
        };
        files.seen(folder.join("flannel"))?;
        Ok::<_, Skip>(programs.into_iter().map(state).collect::<Vec<_>>())
    };
    let states = facts.host.look(look).await??;
    let folder = facts.places.cni_bin_dir.display();
    let found = states.iter().filter_map(|(program, what)| {
        let what = what.as_ref()?;
        let fix = match program.as_str() {
            "flannel" => "`flanneld install-cni` installs it (--plugin-dir for another folder)",
            _ => "install containernetworking-plugins 1.0 or newer into the folder that the runtime uses",
        };
        Some(Finding::failure(format!("the plugin {folder}/{program} {what}: no pod can start"), fix))
    });
    let names = states.iter().map(|(program, _)| program.as_str()).collect::<Vec<_>>().join(", ");
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || format!("{folder} has {names}")))
}

/// Whether the plugins know the version of the config (CNI specification, `VERSION`).
pub(super) async fn version(facts: &Facts) -> Checked {
    let config = of_flannel(facts).await?;
    let wanted = config.version();
    let mut seen = Vec::new();
    let mut found = Vec::new();
    let programs = config.programs();
    let asked = programs.iter().filter(|program| *program != "loopback").map(|program| async move {
        let path = facts.host.path(facts.places.cni_bin_dir.join(program));
        let variables = [("CNI_COMMAND", "VERSION"), ("CNI_PATH", "/nonexistent")];
        let input = format!("{{\"cniVersion\":\"{wanted}\"}}");
        let path = path.to_string_lossy();
        let ran = tokio::time::timeout(PATIENCE, facts.host.run_with(&path, &variables, &input)).await;
        (program, ran)
    });
    for (program, ran) in join_all(asked).await {
        let Ok(ran) = ran else {
            found.push(Finding::warning(
                format!("the plugin {program} does not say its versions within {} s", PATIENCE.as_secs()),
                format!("see what {program} waits for; install a newer one, if it is older than CNI 0.3"),
            ));
            continue;
        };
        // A plugin that is missing is another check's.
        let Ok(ran) = ran else { continue };
        let Ok(said) = serde_json::from_str::<Value>(&ran.out) else { continue };
        let known: Vec<&str> =
            said["supportedVersions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if known.contains(&wanted) {
            seen.push(program.as_str());
        } else {
            found.push(Finding::failure(
                format!(
                    "{} wants CNI version {wanted}, and the plugin {program} knows {}",
                    config.name,
                    known.join(", ")
                ),
                format!(
                    "set cniVersion of {} to one that all plugins know, or install newer plugins",
                    config.name
                ),
            ));
        }
    }
    if seen.is_empty() && found.is_empty() {
        return Err(Skip::new("no plugin could be asked for the versions that it knows"));
    }
    Ok(Finding::of_all(found, || format!("CNI version {wanted} is known to {}", seen.join(", "))))
}

/// The bridge of the pods against this node's subnet.
pub(super) async fn bridge(facts: &Facts) -> Checked {
    let name = match of_flannel(facts).await {
        Ok(config) => config.bridge().to_owned(),
        Err(_) => "cni0".to_owned(),
    };
    let subnets = facts.subnets();
    if subnets.is_empty() {
        return Err(Skip::new("neither state file nor subnet file names this node's subnet"));
    }
    let Some(bridge) = facts.links()?.iter().find(|link| link.name == name) else {
        return Err(Skip::new(format!("there is no bridge {name}: no pod is here yet")));
    };
    let addresses: Vec<_> =
        facts.addresses()?.iter().filter(|address| address.link == bridge.index && address.global).collect();
    // The bridge of another agent's pods may be the one of this name.
    let of_others = facts.others.iter().map(|other| &other.subnets);
    let all: Vec<_> = of_others.chain([&subnets]).flat_map(flannel_core::addr::PerFamily::iter).collect();
    let foreign =
        addresses.iter().filter(|address| !all.iter().any(|(_, subnet)| subnet.contains(address.addr.ip())));
    let lease = subnets.iter().map(|(_, subnet)| subnet.to_string()).collect::<Vec<_>>().join(", ");
    let found = foreign.map(|address| {
        Finding::failure(
            format!("{name} has {}, and this node's lease is {lease}: new pods fail (\"already has an IP address different from\")", address.addr),
            format!("delete the bridge (`ip link delete {name}`); the next pod makes it anew, pods that run must be re-created"),
        )
    });
    Ok(Finding::of_all(found, || format!("{name} has addresses of {lease} alone")))
}
