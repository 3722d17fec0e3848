//! `flanneld doctor`: flags around [`flannel_doctor`].

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flannel_control::{Client, socket_of};
use flannel_core::backend::Backend;
use flannel_core::error::chain;
use flannel_core::netns::Netns;
use flannel_doctor::bundle::Bundle;
use flannel_doctor::redact::Redactor;
use flannel_doctor::{Doctor, Host, Places, Report, StoreToAsk};
use tokio::runtime::Builder;

use crate::cli::{self, DoctorOptions, Options, Store};
use crate::{logs, privileges, registry, runtime, store};

/// Examines the host. The worst verdict is the exit status.
pub(crate) fn run(options: &DoctorOptions) -> ExitCode {
    // The report is what the operator wants to see; a log is only for those who ask for one.
    if options.common.verbosity > 0 || !options.common.vmodule.is_empty() {
        logs::set_up(&options.common);
    }
    if let Err(error) = Host::check_root(&options.root) {
        let root = options.root.display();
        let _ =
            writeln!(io::stderr(), "flanneld doctor: --root: {root} can't be the root of a host: {error}");
        return USAGE.into();
    }
    // This must be before other threads start. What is missing is in the report.
    let _ = privileges::raise_granted();
    match runtime::block_on(Builder::new_current_thread(), examine(options)) {
        Ok(report) => {
            // Nobody may read it, which is no failure of the host.
            let _ = report.write(options.output, &mut io::stdout().lock());
            report.verdict().exit_code().into()
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "flanneld doctor: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// The exit status for a flag that is wrong, as of a command line that can't be read.
const USAGE: u8 = 2;

async fn examine(options: &DoctorOptions) -> Result<Report, Box<dyn Error>> {
    let host = Host::new(Netns::current()?).root(&options.root);
    let places = places(options).absolute(&options.root)?;
    let client = Client::new(socket_of(&host.path(&places.subnet_file)));
    let wants_events = options.bundle.is_some();
    let asked = tokio::task::spawn_blocking(move || client.report(wants_events));
    // An agent that hangs must not keep the doctor.
    let told = tokio::time::timeout(PATIENCE, asked).await.ok().transpose()?.unwrap_or_default();
    let (store, backends) = store_of(options);
    let doctor = Doctor::new(host).places(places).store(store).backends(backends);
    let doctor = doctor.agent_status(told.status);
    let doctor = doctor.only(options.check.iter().copied())?;
    let Some(file) = &options.bundle else { return Ok(doctor.examine().await) };
    let password = options.common.etcd_password.reveal().to_owned();
    let about = format!("{}\nflanneld doctor {}\n", cli::version(), options.shown);
    let bundle = Bundle::new(doctor).redactor(Redactor::new().knowing([password])).text("about.txt", about);
    let bundle =
        told.events.into_iter().fold(bundle, |bundle, events| bundle.text("agent/events.jsonl", events));
    let packed = options.log.iter().fold(bundle, Bundle::log).write(file).await?;
    let _ = writeln!(io::stderr(), "{}: {} files", file.display(), packed.files.len());
    Ok(packed.report)
}

/// How long the running agent has for its answers.
const PATIENCE: Duration = Duration::from_secs(20);

fn places(options: &DoctorOptions) -> Places {
    let flags = &options.common;
    let secrets = [&flags.etcd_keyfile, &flags.kubeconfig_file].into_iter().flatten().cloned();
    let store_dir = match &flags.store {
        Store::Local(dir) => Some(dir.clone()),
        Store::Etcd => None,
    };
    Places::default()
        .subnet_file(&flags.subnet_file)
        .state_file(flags.state_file.clone())
        .cni(&options.conf_dir, &options.plugin_dir)
        .secrets(secrets)
        .store_dir(store_dir)
}

/// The store of the flags, and the backends that an agent with it would have. Without a flag it is the store of an agent
/// without flags, if there is one.
fn store_of(options: &DoctorOptions) -> (Option<StoreToAsk>, Vec<Arc<dyn Backend>>) {
    let agent = Options::from(options.common.clone());
    match store::open(&agent) {
        Ok(store) => {
            let backends = registry::agent(&agent, Arc::clone(&store)).backends().to_vec();
            let asked =
                if options.names_store { StoreToAsk::named(store) } else { StoreToAsk::guessed(store) };
            (Some(asked.with_usual_servers(!options.names_servers)), backends)
        }
        Err(error) if options.names_store => (Some(StoreToAsk::refused(&*error)), Vec::new()),
        Err(_) => (None, Vec::new()),
    }
}
