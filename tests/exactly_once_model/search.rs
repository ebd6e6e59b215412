//! What must hold, and the search for a state in which it doesn't.

use std::collections::HashMap;

use super::*;

/// What must hold.
impl State {
    /// Somebody was told by the target that the effect is there.
    pub(super) fn sees_effect(&self) -> bool {
        let succeeded = Settle::Write(End::Finished(JobState::Succeeded));
        self.job.state == JobState::Succeeded
            || self.job.done > 0
            || self.workers.iter().any(|w| w.knows)
            || self.rescuer.is_some_and(|(_, at)| at == succeeded)
            || self.workers.iter().any(|w| w.step == Step::Settling(succeeded))
    }

    /// The step is sure to be taken some day. A worker that was buried may be dead.
    fn counts_on(&self, event: Event) -> bool {
        use Event::*;
        match event {
            BeginsAndWorks(w)
            | EmitsMessage(w)
            | FlushesByAnotherSession(w)
            | SendsRecord(w)
            | SendsCommit(w)
            | HearsOfCommit(w)
            | RollsBack(w)
            | PressesCommit(w)
            | GivesCommitUp(w) => !self.workers[w].buried,
            _ => true,
        }
    }

    /// What is wrong. That nothing comes after a job has ended is seen in the states that follow.
    fn broken(&self, rules: &Rules) -> Option<&'static str> {
        let effects = self.target.effects();
        let twice = self.target.effects_of_batches().iter().any(|effects| *effects > 1);
        let (done, lost) = (self.job.done, self.lost_what_was_seen);
        let Target { system, timeline, .. } = self.target;
        let hard_to_tell = system > 1 || self.forgot || (timeline > 1 && !rules.synchronous);
        match self.job.state {
            _ if twice => Some(TWICE),
            JobState::Succeeded if effects < rules.batches && !lost => Some(NO_EFFECT),
            JobState::Cancelled if effects > done => Some(CANCELLED),
            JobState::Failed(Code::Timeout | Code::Poison) if effects > done => Some(FAILED),
            JobState::Cancelled | JobState::Failed(Code::Timeout | Code::Poison) if effects < done && !lost => {
                Some(UNTRUE)
            }
            JobState::Failed(Code::OutcomeUnknown) if !hard_to_tell => Some(KNOWABLE),
            _ => None,
        }
    }
}

/// What a search came to.
pub(super) struct Found {
    pub(super) states: usize,
    /// The final states that were reached.
    pub(super) endings: BTreeSet<String>,
    /// What is wrong, and the shortest way there.
    pub(super) wrong: Option<(&'static str, Vec<Event>)>,
}

impl Found {
    pub(super) fn story(&self) -> String {
        let Some((what, events)) = &self.wrong else { return "nothing is wrong".to_owned() };
        let steps: Vec<String> = events.iter().enumerate().map(|(n, e)| format!("  {:2}. {e:?}", n + 1)).collect();
        format!("{what}, after\n{}", steps.join("\n"))
    }
}

/// Breadth first, so that what is found first is shortest. Looks for whatever is wrong, or for one thing only.
pub(super) fn search(rules: &Rules, only: Option<&str>) -> Found {
    let wanted = |what: &&'static str| only.is_none_or(|only| only == *what);
    let mut known: HashMap<State, u32> = HashMap::from([(State::first(rules), 0)]);
    let mut states = vec![State::first(rules)];
    let mut came: Vec<Option<(u32, Event)>> = vec![None];
    let mut sure: Vec<(u32, u32)> = Vec::new();
    let mut n = 0;
    while let Some(state) = states.get(n).copied() {
        if let Some(what) = state.broken(rules).filter(wanted) {
            return found(&states, Some((what, way(&came, n))));
        }
        let from = u32::try_from(n).unwrap();
        for (event, next) in state.moves(rules) {
            let new = u32::try_from(states.len()).unwrap();
            let to = *known.entry(next).or_insert(new);
            if to == new {
                states.push(next);
                came.push(Some((from, event)));
            }
            if next.faults_left == state.faults_left && state.counts_on(event) {
                sure.push((from, to));
            }
        }
        n += 1;
    }
    let stuck = cannot_end(&states, &sure).map(|n| (STUCK, way(&came, n)));
    found(&states, stuck.filter(|(what, _)| wanted(what)))
}

fn found(states: &[State], wrong: Option<(&'static str, Vec<Event>)>) -> Found {
    let endings = states.iter().filter(|s| s.has_ended()).map(|s| format!("{:?}", s.job.state)).collect();
    Found { states: states.len(), endings, wrong }
}

fn way(came: &[Option<(u32, Event)>], to: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let mut at = to;
    while let Some((from, event)) = came[at] {
        events.push(event);
        at = from as usize;
    }
    events.reverse();
    events
}

/// The first state from which the steps that are sure to be taken can't lead to the job's end.
fn cannot_end(states: &[State], sure: &[(u32, u32)]) -> Option<usize> {
    let mut can_end: Vec<bool> = states.iter().map(State::has_ended).collect();
    let mut changed = true;
    while changed {
        changed = false;
        for (from, to) in sure.iter().rev() {
            if can_end[*to as usize] && !can_end[*from as usize] {
                can_end[*from as usize] = true;
                changed = true;
            }
        }
    }
    can_end.iter().position(|can_end| !can_end)
}
