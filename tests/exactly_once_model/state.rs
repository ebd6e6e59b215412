//! How the nouns of the model begin, and the questions that its steps ask of them.

use super::*;

impl Mark {
    pub(super) const NONE: Mark = Mark { xid: 0, system: 0, timeline: 0, batch: 0 };
}

impl Worker {
    pub(super) const ABSENT: Worker = Worker {
        step: Step::Absent,
        session: Session::Absent,
        record: Record::None,
        mark: Mark::NONE,
        kept: None,
        knows: false,
        stop: None,
        buried: false,
    };

    /// It has this xid, or had it for the batch that is recorded.
    pub(super) fn names(&self, xid: u8) -> bool {
        self.mark.xid == xid || self.kept.is_some_and(|kept| kept.xid == xid)
    }

    /// The largest xid that it names.
    pub(super) fn last_xid(&self) -> u8 {
        self.mark.xid.max(self.kept.map_or(0, |kept| kept.xid))
    }

    /// COMMIT wasn't sent: it can still decide against it.
    pub(super) fn may_roll_back(&self) -> bool {
        use Step::{Claimed, Emitted, Flushed, Recording, Worked};
        matches!(self.step, Claimed | Worked | Emitted | Flushed | Recording)
    }
}

impl Target {
    pub(super) fn append(&mut self, entry: Entry) {
        self.log[usize::from(self.written)] = entry;
        self.written += 1;
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.log[..usize::from(self.written)]
    }

    /// How often the effect of each batch is there.
    pub(super) fn effects_of_batches(&self) -> [u8; BATCHES] {
        let mut effects = self.copied;
        for entry in self.entries() {
            if let Entry::Commit { effect: batch @ 1.., .. } = entry {
                effects[usize::from(*batch) - 1] += 1;
            }
        }
        effects
    }

    pub(super) fn effects(&self) -> u8 {
        self.effects_of_batches().iter().sum()
    }

    pub(super) fn flush(&mut self, rules: &Rules) {
        self.flushed = self.written;
        if rules.synchronous {
            self.on_standby = self.written;
        }
    }

    /// Takes off the log's beginning what is safe from every fault and of no interest.
    pub(super) fn forget_the_past(&mut self, workers: &[Worker]) {
        while self.on_standby.min(self.flushed) > 0 {
            let (xid, effect) = match self.log[0] {
                Entry::Message { xid } => (xid, 0),
                Entry::Commit { xid, effect } => (xid, effect),
                Entry::Nothing => return,
            };
            if workers.iter().any(|w| w.names(xid)) {
                return;
            }
            self.last_xid = self.last_xid.max(xid);
            if let Some(batch) = usize::from(effect).checked_sub(1) {
                self.copied[batch] += 1;
            }
            self.log.rotate_left(1);
            self.log[LOG - 1] = Entry::Nothing;
            self.written -= 1;
            self.flushed -= 1;
            self.on_standby -= 1;
        }
    }

    /// All that is left is the first part of the log. The next xid is the one after the last that it names.
    pub(super) fn keep(&mut self, entries: u8) {
        self.log[usize::from(entries)..].fill(Entry::Nothing);
        self.written = entries;
        self.flushed = entries;
        let named = self.entries().iter().map(|entry| match entry {
            Entry::Message { xid } | Entry::Commit { xid, .. } => *xid,
            Entry::Nothing => 0,
        });
        self.next_xid = named.max().unwrap_or(0).max(self.last_xid) + 1;
    }
}

impl State {
    pub(super) fn first(rules: &Rules) -> State {
        State {
            job: Job { state: JobState::Queued, lease: 0, interruptions: 0, cancel_requested: false, done: 0 },
            workers: [Worker::ABSENT; ATTEMPTS],
            rescuer: None,
            target: Target {
                system: 1,
                timeline: 1,
                log: [Entry::Nothing; LOG],
                written: 0,
                flushed: 0,
                on_standby: 0,
                next_xid: 1,
                last_xid: 0,
                copied: [0; BATCHES],
            },
            others_left: OTHERS,
            faults_left: rules.faults,
            forgot: false,
            lost_what_was_seen: false,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        !matches!(self.job.state, JobState::Queued | JobState::Running)
    }

    /// The job runs under the lease of this attempt.
    pub(super) fn holds_lease(&self, w: usize) -> bool {
        self.job.state == JobState::Running && usize::from(self.job.lease) == w + 1
    }

    pub(super) fn fence_passes(&self, w: usize) -> bool {
        self.holds_lease(w) && !self.workers[w].buried
    }

    pub(super) fn check_fence(&mut self, w: usize, rules: &Rules) {
        let passes = self.fence_passes(w) || rules.flaw == Some(Flaw::NoFence);
        let record = &mut self.workers[w].record;
        if matches!(record, Record::None | Record::Refused) {
            *record = if passes { Record::Checked } else { Record::Refused };
        }
    }

    /// What the worker is to stop for, as far as it can know. It may always notice late.
    pub(super) fn stop(&self, w: usize) -> Option<Stop> {
        let cancel = (self.job.cancel_requested && self.holds_lease(w)).then_some(Stop::Cancel);
        self.workers[w].stop.or(cancel)
    }

    /// The end of an attempt that had no effect.
    pub(super) fn end_without_effect(&self, w: usize) -> End {
        match self.stop(w) {
            Some(Stop::Cancel) => End::Finished(JobState::Cancelled),
            Some(Stop::Deadline) => End::Finished(JobState::Failed(Code::Timeout)),
            Some(Stop::Shutdown) | None => End::HandBack,
        }
    }

    pub(super) fn status(&self, xid: u8, log: &[Entry], next_xid: u8) -> XactStatus {
        use Session::{AwaitsStandby, CommitSent, InTransaction};
        let open = |w: &&Worker| matches!(w.session, InTransaction | CommitSent | AwaitsStandby);
        if self.workers.iter().filter(open).any(|w| w.mark.xid == xid && w.mark.system == self.target.system) {
            XactStatus::InProgress
        } else if xid >= next_xid {
            XactStatus::InTheFuture
        } else if log.iter().any(|entry| matches!(entry, Entry::Commit { xid: x, .. } if *x == xid)) {
            XactStatus::Committed
        } else {
            XactStatus::Aborted
        }
    }

    /// Every session ends, and of the log only the first entries stay.
    pub(super) fn lose(&mut self, kept: u8) {
        (0..ATTEMPTS).for_each(|w| self.end_session(w));
        self.target.keep(kept);
    }

    /// Makes states equal that nothing can tell apart any more.
    pub(super) fn forget_the_past(&mut self) {
        for w in 0..ATTEMPTS {
            let worker = self.workers[w];
            if self.holds_lease(w) || worker.step == Step::Absent {
                continue;
            }
            // Without the lease it has no say any more. What counts is whether it can commit.
            self.workers[w] = if matches!(worker.session, Session::CommitSent | Session::AwaitsStandby) {
                let (record, kept) = (Record::None, None);
                Worker { step: Step::Gone, record, kept, knows: false, stop: None, buried: false, ..worker }
            } else if worker.may_roll_back() && worker.session != Session::Over && worker.record != Record::Refused {
                Worker { kept: None, knows: false, stop: None, buried: false, ..worker }
            } else {
                Worker { step: Step::Gone, session: Session::Over, ..Worker::ABSENT }
            };
        }
        if self.has_ended() {
            self.job = Job { lease: 0, interruptions: 0, cancel_requested: false, ..self.job };
        }
        self.target.forget_the_past(&self.workers);
    }

    pub(super) fn end_session(&mut self, w: usize) {
        if self.workers[w].session != Session::Absent {
            self.workers[w].session = Session::Over;
        }
    }
}
