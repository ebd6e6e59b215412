//! How the targets of this process are, as far as it knows, for whoever looks at its row.

use std::collections::BTreeMap;

use chrono::Utc;

use crate::queue::fleet::workers::TargetHealth;
use crate::target::Targets;

/// Every target's health, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Healths(Vec<TargetHealth>);

impl Healths {
    /// As they are now.
    pub fn of(targets: &Targets, refused: &BTreeMap<String, String>) -> Healths {
        let known = targets.iter().map(|(name, target)| (name, target.trouble()));
        let refused = refused.iter().map(|(name, why)| (name, Some(why.clone())));
        let health = |(name, trouble): (&String, Option<String>)| TargetHealth {
            name: name.clone(),
            available: trouble.is_none(),
            trouble,
            since: Utc::now(),
        };
        let mut all: Vec<TargetHealth> = known.chain(refused).map(health).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Healths(all)
    }

    /// Brings them up to date. `true` when one is otherwise than before.
    pub fn update(&mut self, now: Healths) -> bool {
        let mut changed = false;
        for health in now.0 {
            match self.0.iter_mut().find(|known| known.name == health.name) {
                Some(known) if (known.available, &known.trouble) == (health.available, &health.trouble) => continue,
                Some(known) => *known = health,
                None => self.0.push(health),
            }
            changed = true;
        }
        changed
    }

    /// Each of them.
    pub fn all(&self) -> &[TargetHealth] {
        &self.0
    }
}
