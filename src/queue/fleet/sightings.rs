//! Who was seen to beat when, by a clock that nobody sets.
//!
//! A process is dead when its number of beats has stayed the same for [`DEAD_AFTER`] of the looker's own time. Whoever begins
//! to look, or was away itself, waits that long before it takes anybody for dead: forget what was seen then.

use std::collections::HashMap;
use std::time::Instant;

use diesel::pg::PgConnection;
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::fleet::workers::{self, DEAD_AFTER, Sighted};

/// See the module.
#[derive(Debug, Default)]
pub struct Sightings {
    seen: HashMap<Uuid, (i64, Instant)>,
}

impl Sightings {
    /// Looks at everybody's beats. Says who is dead.
    ///
    /// # Errors
    /// When the database fails.
    pub fn look(&mut self, connection: &mut PgConnection) -> Result<Vec<Sighted>, DbError> {
        let asked = Instant::now();
        let beats = workers::beats(connection)?;
        Ok(self.judge(&beats, asked, Instant::now()))
    }

    /// What was seen at some moment between `asked` and `answered`: a number counts from the later one when it is new, and
    /// up to the earlier one when it isn't.
    fn judge(&mut self, beats: &[Sighted], asked: Instant, answered: Instant) -> Vec<Sighted> {
        let before = std::mem::take(&mut self.seen);
        let mut dead = Vec::new();
        for worker in beats {
            let known = before.get(&worker.id).filter(|(beat, _)| *beat == worker.beat);
            let since = known.map_or(answered, |(_, since)| *since);
            self.seen.insert(worker.id, (worker.beat, since));
            if asked.saturating_duration_since(since) >= DEAD_AFTER {
                dead.push(*worker);
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_has_not_beaten_for_long_is_dead_whatever_was_seen_before() {
        let (start, id, other) = (Instant::now(), Uuid::now_v7(), Uuid::now_v7());
        let mut sightings = Sightings::default();
        let mut at = |seconds: u64, beats: &[(Uuid, i64)]| {
            let beats: Vec<Sighted> = beats.iter().map(|(id, beat)| Sighted { id: *id, beat: *beat }).collect();
            let asked = start + Duration::from_secs(seconds);
            let dead = sightings.judge(&beats, asked, asked + Duration::from_secs(1));
            dead.into_iter().map(|worker| worker.id).collect::<Vec<_>>()
        };
        let nobody: Vec<Uuid> = Vec::new();
        // The first sight of somebody says nothing of how long ago that beat was.
        assert_eq!(at(0, &[(id, 7), (other, 1)]), nobody);
        assert_eq!(at(10, &[(id, 7), (other, 2)]), nobody);
        // 14 s after the first answer.
        assert_eq!(at(15, &[(id, 7), (other, 3)]), nobody);
        assert_eq!(at(16, &[(id, 7), (other, 4)]), [id]);
        // A number that went back, as after a restored backup, is a change too; and so is coming back.
        assert_eq!(at(18, &[(id, 6), (other, 4)]), nobody);
        assert_eq!(at(20, &[(other, 5)]), nobody);
        assert_eq!(at(35, &[(id, 6), (other, 5)]), nobody);
        assert_eq!(at(36, &[(id, 6), (other, 5)]), [other]);
    }
}
