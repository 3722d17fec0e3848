use super::*;

#[test]
fn reads_urls() {
    for url in ["https://10.0.0.1:6443", "http://[fd00::1]:8080/", "https://user:secret@host/path/"] {
        parse_url(&url.into()).unwrap();
    }
    for url in [
        "",
        "10.0.0.1:6443",
        "ftp://host",
        "https://",
        "host",
        "http://me:secret",
        "http://a:70000",
        "http://a:",
    ] {
        assert!(parse_url(&url.into()).unwrap_err().contains("give an URL"), "{url}");
    }
    let url = |host: &str| {
        let server = (host.to_owned(), 443);
        let access = KubeAccess::InCluster { server, service_account: "/nowhere".into() };
        Clients::new(access, KubeTimeouts::default()).unwrap().server()
    };
    assert_eq!(url("10.96.0.1"), "https://10.96.0.1:443");
    assert_eq!(url("fd00::1"), "https://[fd00::1]:443");
}

#[test]
fn the_server_is_that_of_the_current_context() {
    let text = |current: &str| {
        format!(
            "current-context: {current}\ncontexts: [{{name: a, context: {{cluster: one}}}}, {{name: b, context: {{cluster: two}}}}, \
             {{name: c, context: {{cluster: none}}}}]\nclusters: [{{name: one, cluster: {{server: 'https://10.0.0.1:6443'}}}}, \
             {{name: two, cluster: {{server: 'https://api.example:443'}}}}]"
        )
    };
    for (current, server) in [
        ("a", Some("https://10.0.0.1:6443")),
        ("b", Some("https://api.example:443")),
        ("c", None),
        ("d", None),
    ] {
        let config = Kubeconfig::from_yaml(&text(current)).unwrap();
        assert_eq!(server_of(&config).as_deref(), server, "{current}");
    }
}

#[test]
fn a_login_in_the_url_is_none_of_the_address() {
    for (url, address, user) in [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/", None),
        ("https://me:hush@host/base", "https://host/base", Some(("me", "hush"))),
        ("https://me@[fd00::1]:1", "https://[fd00::1]:1/", Some(("me", ""))),
        ("https://m%65:a%3Ab%zz@host", "https://host/", Some(("me", "a:b%zz"))),
    ] {
        let mut config = Config::new(parse_url(&url.into()).unwrap());
        log_in_by_url(&mut config);
        assert_eq!(config.cluster_url.to_string(), address);
        let user_now = config.auth_info.username.as_deref();
        assert_eq!(user_now, user.map(|(name, _)| name));
        let password = serde_json::to_value(&config.auth_info).unwrap()["password"].clone();
        assert_eq!(password.as_str(), user.map(|(_, password)| password));
    }
    let mut config = Config::new(parse_url(&"https://me:hush@host".into()).unwrap());
    config.auth_info.token = Some("token".to_owned().into());
    log_in_by_url(&mut config);
    assert_eq!(config.auth_info.username, None, "a token comes first");
}

#[tokio::test]
async fn needs_no_certificates_of_the_machine_if_it_has_a_clusters_or_uses_no_tls() {
    let secrets = tempfile::tempdir().unwrap();
    for file in ["token", "ca.crt"] {
        std::fs::write(secrets.path().join(file), "").unwrap();
    }
    let in_cluster = KubeAccess::InCluster {
        server: ("10.96.0.1".into(), 443),
        service_account: secrets.path().to_owned(),
    };
    for (access, its_own) in [
        (in_cluster, true),
        (KubeAccess::Url("http://127.0.0.1:8080".into()), true),
        (KubeAccess::Url("https://127.0.0.1:6443".into()), false),
    ] {
        let config = Clients::new(access, KubeTimeouts::default()).unwrap().config().await.unwrap();
        assert_eq!(config.root_cert.is_some(), its_own, "{}", config.cluster_url);
    }
}

#[test]
fn knows_what_an_answer_means() {
    let error = |status, why: &str| CallError { status, ..CallError::new("list nodes", why) };
    assert!(error(Some(410), "").is_expired());
    assert!(error(Some(504), "504 Timeout: Too large resource version: 9, current: 3").is_expired());
    assert!(!error(Some(504), "gateway").is_expired());
    assert!(error(Some(422), "").is_refused() && error(Some(400), "").is_refused());
    assert!(!error(Some(403), "no role").is_refused());
    assert!(SubnetError::from(error(None, "refused")).is_transient());
}

const PASSWORD: &str = "Marker-Of-Secret";

/// Whether a text has a part of the password that is left when one byte of it is another, as text or as numbers.
fn tells(text: &str) -> bool {
    let parts = (0..=PASSWORD.len() - 8).map(|at| &PASSWORD[at..at + 8]);
    let numbers = |part: &str| format!("{:?}", part.as_bytes()).trim_matches(['[', ']']).to_owned();
    parts.clone().any(|part| text.contains(part)) || parts.map(numbers).any(|part| text.contains(&part))
}

/// A kubeconfig with the password in every place that can hold one, `user` being the login that is used.
fn kubeconfig(server: &str, cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: lab\n  cluster:\n    server: {server}\n{cluster}users:\n\
         - name: agent\n  user:\n{user}contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: agent\n\
         current-context: lab\n"
    )
}

/// What is said of a kubeconfig and by a call with it.
async fn said(file: &Path) -> String {
    let access = KubeAccess::Kubeconfig { file: file.to_owned(), server: None };
    let timeouts = KubeTimeouts { connect: Duration::from_secs(1), ..KubeTimeouts::default() };
    match Clients::new(access, timeouts) {
        Err(error) => format!("{error:?} {}", chain(&error)),
        Ok(clients) => {
            let config = clients.config().await;
            let is_near = config.as_ref().is_ok_and(|config| config.cluster_url.host() == Some("127.0.0.1"));
            let config = config.map(drop);
            // A damaged address may be a name, which nobody is to be asked for.
            let called = if is_near || config.is_err() {
                clients.call("read our node", get("/api/v1/nodes/n1"), Duration::from_secs(5)).await.map(drop)
            } else {
                clients.client("read our node").await.map(drop)
            };
            let text = called.as_ref().err().map(ToString::to_string);
            format!("{clients:?} {} {config:?} {called:?} {text:?}", clients.server())
        }
    }
}

/// Cut anywhere, and with any byte replaced by one that means something in YAML, no part of a kubeconfig is told.
#[tokio::test]
async fn a_damaged_kubeconfig_is_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    // Nobody listens there.
    let plain = "http://127.0.0.1:1";
    let (key, proxy) = (
        format!("    client-key-data: {PASSWORD}\n"),
        format!("    proxy-url: http://me:{PASSWORD}@127.0.0.1:2\n"),
    );
    let exec = format!(
        "    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: {}/none\n      args: [{PASSWORD}]\n",
        folder.path().display()
    );
    for (server, cluster, user) in [
        (plain, "", format!("    token: {PASSWORD}\n")),
        (plain, "", format!("    username: me\n    password: \"{PASSWORD}\"\n")),
        (plain, "", format!("    client-certificate-data: {PASSWORD}\n{key}")),
        (plain, "", format!("    tokenFile: /none\n    token: {PASSWORD}\n{key}")),
        (plain, "", exec),
        (plain, &*proxy, "    token: x\n".to_owned()),
        (&*format!("http://me:{PASSWORD}@127.0.0.1:1"), "", "    {}\n".to_owned()),
    ] {
        let text = kubeconfig(server, cluster, &user);
        let check = async |text: &str| {
            std::fs::write(&file, text).unwrap();
            let said = said(&file).await;
            assert!(!tells(&said), "{text}\nis told: {said}");
        };
        check(&text).await;
        for cut in 0..text.len() {
            check(&text[..cut]).await;
        }
        for at in 0..text.len() {
            // Near the password with more of what means something.
            let is_near = text.find(PASSWORD).is_some_and(|start| start.abs_diff(at) < 40);
            let bytes: &[&str] = if is_near { &["x", ":", "\"", "\n", "{"] } else { &["x"] };
            for byte in bytes {
                check(&format!("{}{byte}{}", &text[..at], &text[at + 1..])).await;
            }
        }
    }
}

/// Where a kubeconfig is broken is told, so that it can be mended.
#[tokio::test]
async fn a_damaged_kubeconfig_is_told_by_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let text = kubeconfig("http://127.0.0.1:1", "", &format!("    token: \"{PASSWORD}\n"));
    std::fs::write(&file, text).unwrap();
    let said = said(&file).await;
    assert!(said.contains("kubeconfig: it is no kubeconfig: line "), "{said}");
    assert!(said.contains(&*file.to_string_lossy()) && !tells(&said), "{said}");
    std::fs::write(
        &file,
        kubeconfig("http://127.0.0.1:1", "", "    client-certificate: /none\n    client-key: /none\n"),
    )
    .unwrap();
    let said = self::said(&file).await;
    assert!(said.contains("client-certificate: No such file"), "{said}");
}

/// The output of a program that makes tokens is not told.
#[tokio::test]
async fn a_program_that_makes_no_token_is_not_quoted() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("kubeconfig"), folder.path().join("program"));
    for (script, why) in [
        (format!("echo {PASSWORD}; echo {PASSWORD} >&2; exit 3"), "failed: exit status: 3"),
        (format!("echo '{{\"token\": \"{PASSWORD}\", '"), "no ExecCredential"),
        (format!("echo '{{\"status\": {{\"token\": [7], \"x\": \"{PASSWORD}\"}}}}'"), "no ExecCredential"),
    ] {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let exec = format!(
            "    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      interactiveMode: Never\n      command: {}\n      env: [{{name: X, value: {PASSWORD}}}]\n",
            program.display()
        );
        std::fs::write(&file, kubeconfig("http://127.0.0.1:1", "", &exec)).unwrap();
        let said = said(&file).await;
        assert!(said.contains(why) && !tells(&said), "{said}");
    }
}

/// A token with anything in it, and the files of a pod.
#[tokio::test]
async fn a_damaged_token_is_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let (token, file) = (folder.path().join("token"), folder.path().join("kubeconfig"));
    std::fs::write(folder.path().join("ca.crt"), PASSWORD).unwrap();
    std::fs::write(
        &file,
        kubeconfig("http://127.0.0.1:1", "", &format!("    tokenFile: {}\n", token.display())),
    )
    .unwrap();
    for at in 0..=PASSWORD.len() {
        for byte in [b"\n".as_slice(), b"\0", b"\xff", b"\r", b"x"] {
            let bytes = [&PASSWORD.as_bytes()[..at], byte, &PASSWORD.as_bytes()[at..]].concat();
            std::fs::write(&token, bytes).unwrap();
            let said = said(&file).await;
            assert!(!tells(&said), "{said}");
            let access = KubeAccess::InCluster {
                server: ("127.0.0.1".into(), 1),
                service_account: folder.path().to_owned(),
            };
            let clients = Clients::new(access, KubeTimeouts::default()).unwrap();
            let error = clients.call("read", get("/"), Duration::from_secs(5)).await.unwrap_err();
            assert!(!tells(&format!("{error:?} {error} {clients:?}")), "{error:?}");
        }
    }
}
