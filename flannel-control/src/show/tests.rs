//! What is shown of an agent that goes away, with a socket that answers as one would.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use nix::pty::{Winsize, openpty};

use super::*;
use crate::protocol::Refusal;

const STATUS: &str = r#"{"version":1,"answer":{"phase":{"name":"running"},"ready":true}}"#;

/// An agent that answers one request with these lines, and is gone then.
fn agent(path: &Path, lines: &'static str) -> thread::JoinHandle<()> {
    let socket = UnixListener::bind(path).unwrap();
    let path = path.to_owned();
    thread::spawn(move || {
        let (stream, _) = socket.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        (&stream).write_all(lines.as_bytes()).unwrap();
        drop(socket);
        fs::remove_file(path).unwrap();
    })
}

#[test]
fn the_end_of_an_agent_that_is_followed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let client = Client::new(&path);
    let mut out = Vec::new();
    let its = agent(&path, concat!(r#"{"version":1,"answer":{"seq":1,"event":"ready"}}"#, "\n"));
    let error = events(&client, true, Form::Table, &mut Terminal::plain(&mut out)).unwrap_err();
    let ShowError::Client(error) = error else { panic!("{error}") };
    assert!(error.is_unanswered() && error.to_string().ends_with("sock has ended"), "{error}");
    its.join().unwrap();
    let its = agent(&path, STATUS);
    let Err(error) = watch(&client, Form::Table, &mut Terminal::plain(&mut out));
    assert!(matches!(&error, ShowError::Client(error) if error.is_unanswered()), "{error}");
    its.join().unwrap();
    let Err(error) = watch(&client, Form::Json, &mut Terminal::plain(&mut out));
    assert!(matches!(&error, ShowError::Client(error) if error.is_no_agent()), "{error}");
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("ready\n") && text.contains("agent  ready\n"), "{text}");
    // Without following, the end of the answers is all there is.
    let its = agent(&path, "");
    assert_eq!(events(&client, false, Form::Table, &mut Terminal::plain(Vec::new())).unwrap(), Outcome::Good);
    its.join().unwrap();
}

#[test]
fn what_a_backend_does_is_told_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let client = Client::new(&path);
    let tell = |lines: &'static str| {
        let its = (!lines.is_empty()).then(|| agent(&path, lines));
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let status = answer("flanneld rotate-key", command(&client, "rotate-key"), &mut out, &mut errors);
        if let Some(its) = its {
            its.join().unwrap();
        }
        (status, [out, errors].map(|text| String::from_utf8(text).unwrap()).concat())
    };
    let done = tell(concat!(r#"{"version":1,"answer":{"text":"the key is being changed"}}"#, "\n"));
    assert_eq!(done, (0, "the key is being changed\n".to_owned()));
    let failed =
        tell(concat!(r#"{"version":1,"error":{"kind":"failed","message":"no such command"}}"#, "\n"));
    assert_eq!(failed, (3, "flanneld rotate-key: no such command\n".to_owned()));
    let early =
        tell(concat!(r#"{"version":1,"error":{"kind":"not-now","message":"it does not run"}}"#, "\n"));
    assert_eq!(early.0, 1);
    let gone = tell("");
    assert!(gone.0 == 2 && gone.1.starts_with("flanneld rotate-key: no agent answers at"), "{gone:?}");
}

#[test]
fn an_exit_status_says_what_was_shown() {
    let broken = io::Error::from(io::ErrorKind::BrokenPipe);
    let full = io::Error::from(io::ErrorKind::StorageFull);
    for (shown, want) in [
        (Ok(Outcome::Good), (0, "")),
        (Ok(Outcome::Bad), (1, "")),
        (Err(ShowError::Output(broken)), (0, "")),
        (Err(ShowError::Output(full)), (3, "flanneld: can't write the answer: no storage space\n")),
        (Err(ShowError::NoPeer("x".into())), (1, "flanneld: no peer has \"x\"")),
    ] {
        let (case, mut errors) = (format!("{shown:?}"), Vec::new());
        let status = outcome("flanneld", shown, &mut errors);
        let errors = String::from_utf8(errors).unwrap();
        assert!(status == want.0 && errors.starts_with(want.1), "{case}: {status} {errors}");
        assert_eq!(errors.is_empty(), want.1.is_empty(), "{case}: {errors}");
    }
}

#[test]
fn on_a_terminal_the_next_agent_is_awaited() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let size = Winsize { ws_row: 10, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(Some(&size), None).unwrap();
    let (mut screen, client) = (fs::File::from(pair.master), Client::new(&path));
    let its = agent(&path, STATUS);
    let watching = thread::spawn(move || {
        let Err(error) = watch(&client, Form::Table, &mut Terminal::of(fs::File::from(pair.slave), |_| None));
        error
    });
    let mut shown = String::new();
    let mut until = |word: &str| {
        while !shown.contains(word) {
            let mut part = [0; 4096];
            let got = screen.read(&mut part).unwrap();
            shown.push_str(&String::from_utf8_lossy(&part[..got]));
        }
        shown.clear();
    };
    until("agent  ready");
    until("waiting for the next one");
    its.join().unwrap();
    let its = agent(&path, STATUS);
    until("agent  ready");
    its.join().unwrap();
    drop(screen);
    let error = watching.join().unwrap();
    assert!(matches!(error, ShowError::Output(_)), "who looks is gone: {error}");
}

#[test]
fn an_agent_that_is_stopped_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    // The kernel accepts connections for a process that is stopped.
    let _socket = UnixListener::bind(&path).unwrap();
    let answers =
        Client::new(&path).follow_within(&Request::new("status"), Duration::from_millis(10)).unwrap();
    let error = answers.map(Result::unwrap_err).next().unwrap();
    assert!(error.is_unanswered() && error.to_string().contains("is it stopped (SIGSTOP)"), "{error}");
}

#[test]
fn a_peer_as_json_has_what_probes_found_out() {
    let status = r#"{"network":{"peer_list":[{"lease":"a","state":"programmed"},{"lease":"b"}]},"probes":{"peers":[{"lease":"a","v4":{"verdict":"mtu-hole"}}]}}"#;
    let status: Box<serde_json::value::RawValue> = serde_json::from_str(status).unwrap();
    assert_eq!(json_of(&status, "a").unwrap()["probes"]["v4"]["verdict"], "mtu-hole");
    assert!(json_of(&status, "b").unwrap()["probes"].is_null());
}

#[test]
fn each_kind_of_failure_has_its_exit_status() {
    let path = || "/run/sock".into();
    let refused = |kind| ClientError::Refused(Refusal::new(kind, "why"));
    let broken = || io::Error::from(io::ErrorKind::PermissionDenied);
    for (error, want) in [
        (refused(RefusalKind::NotNow), 1),
        (ClientError::NoAgent { path: path(), source: broken() }, 2),
        (ClientError::Ended { path: path() }, 2),
        (ClientError::Silent { path: path(), patience: Duration::from_secs(1) }, 2),
        (ClientError::Closed, 2),
        (ClientError::Denied { path: path(), source: broken() }, 3),
        (refused(RefusalKind::Busy), 3),
        (ClientError::Version(2), 3),
    ] {
        let error = ShowError::from(error);
        assert_eq!(error.exit_status(), want, "{error}");
    }
    assert_eq!(ShowError::NoPeer("x".to_owned()).exit_status(), 1);
    assert_eq!(ShowError::Output(broken()).exit_status(), 3);
}
