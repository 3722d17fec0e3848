//! Holds what is inside of the devices, keys and peers, and says what is wrong with it.

use std::time::SystemTime;

use flannel_core::events::NetworkEvent;
use flannel_core::reconcile::{Held, Prune};
use flannel_core::status::{Harm, Problem, Reason, Subject};

use super::{WireguardDriver, ensure};
use crate::tunnel::Common;

impl WireguardDriver {
    /// Holds the content of all devices. Errors of one do not keep the others from it.
    pub(super) async fn hold_all(&mut self, read: bool, prune: Prune<'_>) -> Held {
        let mut held = Held::default();
        let now = SystemTime::now();
        let networks = self.sides.iter().map(|(_, side)| side.network).collect();
        let common = Common { config: &self.config, key: &self.key, networks };
        for tunnel in &mut self.tunnels {
            let name = tunnel.name;
            match tunnel.hold(read, &common, prune, now).await {
                Ok(outcome) => {
                    held.changed |= outcome.done.is_some();
                    held.events.extend(
                        outcome
                            .done
                            .map(|detail| NetworkEvent::DeviceChanged { link: name.to_owned(), detail }),
                    );
                    held.notes.extend(outcome.ahead.map(|at| clock_set_back(name, at, now)));
                    for (ip, key) in outcome.held_back {
                        let cause = format!(
                            "device {name}: peer {key} can't have {ip} yet: another peer has it that must stay, since \
                             it is not of this agent, or its record can't be read"
                        );
                        held.notes.push(Problem::new(Subject::Device, Harm::Some, cause));
                    }
                    if outcome.foreign > 0 {
                        let cause = format!(
                            "device {name} has peers of somebody else: {}; they stay",
                            outcome.foreign
                        );
                        held.notes.push(Problem::new(Subject::Device, Harm::None, cause));
                    }
                }
                Err(error) => {
                    tunnel.forget();
                    let error = ensure::explain(&error, &common, tunnel, &self.netns);
                    held.problems.add(tunnel.family(), format!("device {name}: {error}"));
                }
            }
        }
        held
    }
}

fn clock_set_back(name: &str, at: SystemTime, now: SystemTime) -> Problem {
    let ahead = at.duration_since(now).unwrap_or_default().as_secs();
    let reason = Reason::new(
        format!(
            "device {name}: the clock of this host was set back, the last handshake was {ahead} s later than now; \
             peers refuse handshakes that are not newer than the last one (TAI64N)"
        ),
        "set the clock right",
    );
    Problem::new(Subject::Device, Harm::Some, reason)
}
