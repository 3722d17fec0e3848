//! Reading and writing the store from outside, by the `etcdctl` program.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Etcd;
use crate::netns::Netns;
use crate::{LabError, exec};

/// A key with its value and what the store knows about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// The revision of the last change.
    pub mod_revision: i64,
    /// How often it was put since it was created.
    pub version: i64,
    /// The id of the etcd lease it is attached to; 0 for none.
    pub lease: i64,
}

/// A lease of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its id.
    pub id: i64,
    /// The time it was granted for; `None` if it is gone.
    pub granted: Option<Duration>,
    /// The time it has left; `None` if it is gone.
    pub left: Option<Duration>,
    /// The keys that are attached to it.
    pub keys: Vec<String>,
}

impl Etcd {
    /// Runs `etcdctl` with whatever is needed to reach the server; returns its stdout.
    pub fn ctl(&self, args: &[&str]) -> Result<String, LabError> {
        exec::output(self.ctl_command(args)?)
    }

    fn ctl_command(&self, args: &[&str]) -> Result<Command, LabError> {
        exec::find("etcdctl")?;
        let mut command = match &self.netns {
            Some(netns) => Netns::command(netns, "etcdctl"),
            None => Command::new(exec::find("etcdctl")?),
        };
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]);
        if let Some(tls) = &self.tls {
            command.args(tls.client_args());
        }
        if let Some(login) = &self.login {
            command.args(["--user", login]);
        }
        command.args(args);
        Ok(command)
    }

    /// Puts a key.
    pub fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        // The kernel doesn't accept a longer one as an argument.
        if value.len() >= 100_000 {
            return exec::output_with_input(self.ctl_command(&["put", "--", key])?, value).map(drop);
        }
        self.ctl(&["put", "--", key, value]).map(drop)
    }

    /// Puts a key and attaches it to an etcd lease.
    pub fn put_on_lease(&self, key: &str, value: &str, lease: i64) -> Result<(), LabError> {
        self.ctl(&["put", "--lease", &format!("{lease:x}"), "--", key, value]).map(drop)
    }

    /// Puts a key that exists; it stays attached to its etcd lease.
    pub fn put_in_place(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.ctl(&["put", "--ignore-lease", "--", key, value]).map(drop)
    }

    /// Gets a key's value.
    pub fn get(&self, key: &str) -> Result<Option<String>, LabError> {
        let found = self.query(&["get", "-w", "json", "--", key])?;
        Ok(found.into_iter().next().map(|found| found.value))
    }

    /// Lists the keys with this prefix, in order.
    pub fn list(&self, prefix: &str) -> Result<Vec<KeyValue>, LabError> {
        self.query(&["get", "-w", "json", "--prefix", "--", prefix])
    }

    /// Deletes a key.
    pub fn del(&self, key: &str) -> Result<(), LabError> {
        self.ctl(&["del", "--", key]).map(drop)
    }

    /// Deletes all keys with this prefix.
    pub fn del_prefix(&self, prefix: &str) -> Result<(), LabError> {
        self.ctl(&["del", "--prefix", "--", prefix]).map(drop)
    }

    /// The store's revision now.
    pub fn revision(&self) -> Result<i64, LabError> {
        let answer = self.json(&["get", "-w", "json", "--", "no such key"])?;
        let revision = answer["header"]["revision"].as_i64();
        revision.ok_or_else(|| LabError::unexpected("etcd's revision", answer.to_string()))
    }

    /// Compacts all revisions before the present one; watches that ask for them are cancelled.
    pub fn compact(&self) -> Result<i64, LabError> {
        let revision = self.revision()?;
        self.ctl(&["compact", &revision.to_string()])?;
        Ok(revision)
    }

    /// Grants an etcd lease and returns its id. Nobody renews it.
    pub fn grant_lease(&self, time: Duration) -> Result<i64, LabError> {
        let answer = self.json(&["lease", "grant", "-w", "json", &time.as_secs().to_string()])?;
        let id = answer["ID"].as_i64().or(answer["id"].as_i64());
        id.ok_or_else(|| LabError::unexpected("etcdctl lease grant", answer.to_string()))
    }

    /// Revokes an etcd lease, which deletes the keys attached to it.
    pub fn revoke_lease(&self, lease: i64) -> Result<(), LabError> {
        self.ctl(&["lease", "revoke", &format!("{lease:x}")]).map(drop)
    }

    /// What the store knows about a lease.
    pub fn lease_info(&self, lease: i64) -> Result<LeaseInfo, LabError> {
        let hex = format!("{lease:x}");
        let answer = self.json(&["lease", "timetolive", "-w", "json", "--keys", &hex])?;
        let seconds = |key: &str| {
            let seconds = answer[key].as_i64().and_then(|seconds| u64::try_from(seconds).ok());
            seconds.map(Duration::from_secs)
        };
        let keys = answer["keys"].as_array().into_iter().flatten();
        let left = seconds("ttl");
        Ok(LeaseInfo {
            id: lease,
            granted: left.and(seconds("granted-ttl")),
            left,
            keys: keys.filter_map(|key| from_base64(key.as_str()?)).collect(),
        })
    }

    /// Makes a user who may do anything with any key, and lets in nobody without a password.
    ///
    /// The calls here go on as `root`, whose password is the same.
    pub fn enable_auth(&mut self, user: &str, password: &str) -> Result<(), LabError> {
        for user in ["root", user] {
            self.ctl(&["user", "add", &format!("{user}:{password}")])?;
        }
        self.ctl(&["role", "add", "all"])?;
        self.ctl(&["role", "grant-permission", "all", "readwrite", "--prefix", ""])?;
        self.ctl(&["role", "add", "root"])?;
        self.ctl(&["user", "grant-role", "root", "root"])?;
        self.ctl(&["user", "grant-role", user, "all"])?;
        self.ctl(&["auth", "enable"])?;
        self.login = Some(format!("root:{password}"));
        Ok(())
    }

    fn json(&self, args: &[&str]) -> Result<Value, LabError> {
        let text = self.ctl(args)?;
        let what = || LabError::unexpected(format!("etcdctl {}", args.join(" ")), &text);
        serde_json::from_str(&text).map_err(|_| what())
    }

    fn query(&self, args: &[&str]) -> Result<Vec<KeyValue>, LabError> {
        let answer = self.json(args)?;
        let found = answer["kvs"].as_array().into_iter().flatten();
        let read = found.map(|found| {
            key_value(found).ok_or_else(|| LabError::unexpected("etcdctl get", found.to_string()))
        });
        read.collect()
    }
}

/// Zeroes are left out, and so is an empty value.
fn key_value(found: &Value) -> Option<KeyValue> {
    let number = |key: &str| found[key].as_i64().unwrap_or_default();
    Some(KeyValue {
        key: from_base64(found["key"].as_str()?)?,
        value: from_base64(found["value"].as_str().unwrap_or_default())?,
        mod_revision: number("mod_revision"),
        version: number("version"),
        lease: number("lease"),
    })
}

/// Base64 (RFC 4648 section 4) of UTF-8, which is how `etcdctl` puts bytes into JSON.
fn from_base64(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for byte in chunk {
            bits = bits << 6 | sextet(*byte)?;
        }
        // Left-aligned in 24 bits; 2 characters are a byte, 3 are two.
        bits <<= 6 * (4 - chunk.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    String::from_utf8(bytes).ok()
}

fn sextet(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read() {
        for (coded, plain) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("w7/DvyY+", "ÿÿ&>")]
        {
            assert_eq!(from_base64(coded).as_deref(), Some(plain));
        }
        assert_eq!(from_base64("Z g="), None);
        assert_eq!(from_base64("/w=="), None, "not UTF-8");
    }
}
