//! Which manager keeps the rules.

use super::manager::RuleManager;

/// The manager that keeps the rules, and those that may still have some of an earlier run.
pub struct Managers {
    /// Keeps the rules; `None` where there are none to keep.
    pub(super) active: Option<Box<dyn RuleManager>>,
    /// Have none to keep.
    pub(super) unused: Vec<Box<dyn RuleManager>>,
    choice: String,
}

impl std::fmt::Debug for Managers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Managers").field("choice", &self.choice).finish_non_exhaustive()
    }
}

impl Managers {
    /// Managers that were made elsewhere.
    pub fn new(
        active: Option<Box<dyn RuleManager>>,
        unused: Vec<Box<dyn RuleManager>>,
        choice: impl Into<String>,
    ) -> Self {
        Self { active, unused, choice: choice.into() }
    }

    /// What keeps the rules and why, for the log; empty where there are none to keep.
    pub fn choice(&self) -> &str {
        &self.choice
    }

    /// All of them, for those who want to remove what an earlier run left.
    pub fn into_all(self) -> Vec<Box<dyn RuleManager>> {
        self.active.into_iter().chain(self.unused).collect()
    }
}
