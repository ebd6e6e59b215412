//! The protocol: what worker, servers and rescuer do, each in its own time. And what is left out where there is a flaw.

use super::*;

const UNKNOWN: End = End::Finished(JobState::Failed(Code::OutcomeUnknown));

impl State {
    pub(super) fn moves(&self, rules: &Rules) -> Moves {
        let mut moves = Moves::new();
        for w in 0..ATTEMPTS {
            self.moves_of_worker(w, rules, &mut moves);
            self.moves_of_servers(w, rules, &mut moves);
            if self.faults_left > 0 {
                self.faults_of_attempt(w, rules, &mut moves);
            }
        }
        self.moves_of_rescuer(rules, &mut moves);
        // Only where it takes an xid that one of ours had before the target forgot it.
        if self.others_left > 0 && self.workers.iter().any(|w| w.last_xid() >= self.target.next_xid) {
            self.go(&mut moves, Event::SomebodyElseCommits, |s| {
                let xid = s.target.next_xid;
                s.target.append(Entry::Commit { xid, effect: 0 });
                s.target.next_xid += 1;
                s.others_left -= 1;
            });
        }
        if self.faults_left > 0 {
            self.faults_of_target(rules, &mut moves);
        }
        moves
    }

    fn go(&self, moves: &mut Moves, event: Event, change: impl FnOnce(&mut State)) {
        let mut next = *self;
        change(&mut next);
        next.forget_the_past();
        moves.push((event, next));
    }

    pub(super) fn fault(&self, moves: &mut Moves, event: Event, change: impl FnOnce(&mut State)) {
        self.go(moves, event, |s| {
            s.faults_left -= 1;
            change(s);
        });
    }

    fn moves_of_worker(&self, w: usize, rules: &Rules, moves: &mut Moves) {
        let worker = &self.workers[w];
        let asked = rules.flaw != Some(Flaw::SessionNotAsked);
        match worker.step {
            Step::Absent if self.job.state == JobState::Queued && usize::from(self.job.lease) == w => {
                self.go(moves, Event::Claims(w), |s| {
                    s.job.state = JobState::Running;
                    s.job.lease += 1;
                    s.workers[w].step = Step::Claimed;
                    s.workers[w].mark.batch = s.job.done + 1;
                });
            }
            Step::Claimed => self.go(moves, Event::BeginsAndWorks(w), |s| {
                let Target { system, timeline, next_xid: xid, .. } = s.target;
                let session = Session::InTransaction;
                let mark = Mark { xid, system, timeline, ..worker.mark };
                s.workers[w] = Worker { step: Step::Worked, session, mark, ..*worker };
                s.target.next_xid += 1;
            }),
            Step::Worked if worker.session == Session::InTransaction => {
                self.go(moves, Event::EmitsMessage(w), |s| {
                    if rules.flaw != Some(Flaw::NoMessage) {
                        s.target.append(Entry::Message { xid: worker.mark.xid });
                    }
                    s.workers[w].step = Step::Emitted;
                });
            }
            // After the flush the first session answers once more: it was there all the time, and so was the server. If
            // it hadn't been, the flush would be of a server that may have forgotten the message.
            Step::Emitted if worker.session == Session::InTransaction || !asked => {
                self.go(moves, Event::FlushesByAnotherSession(w), |s| {
                    match rules.flaw {
                        Some(Flaw::NoFlush) => {}
                        Some(Flaw::FlushedHereOnly) => s.target.flushed = s.target.written,
                        _ => s.target.flush(rules),
                    }
                    s.workers[w].step = Step::Flushed;
                });
            }
            Step::Flushed if rules.flaw == Some(Flaw::RecordAfterCommit) => self.send_commit(w, moves),
            // Sent again after a lost answer it changes nothing: it is the same row.
            Step::Flushed => self.go(moves, Event::SendsRecord(w), |s| {
                s.workers[w].step = Step::Recording;
                s.check_fence(w, rules);
            }),
            Step::Recording if worker.record == Record::Written => self.send_commit(w, moves),
            Step::Recording if worker.record == Record::Refused => self.roll_back(w, moves),
            Step::Committing => self.moves_at_commit(w, rules, moves),
            Step::Settling(Settle::Write(end)) => self.go(moves, Event::WritesEnd(w), |s| {
                s.workers[w].step = Step::Gone;
                if s.fence_passes(w) {
                    if worker.knows {
                        s.job.done = s.job.done.max(worker.mark.batch - 1);
                    }
                    s.write(end, rules);
                }
            }),
            Step::Settling(at) => {
                self.settle(w, at, rules, self.end_without_effect(w), moves, |s, at| {
                    s.workers[w].step = Step::Settling(at)
                });
            }
            _ => {}
        }
        if worker.may_roll_back() && (self.stop(w).is_some() || worker.session == Session::Over) {
            self.roll_back(w, moves);
        }
    }

    fn roll_back(&self, w: usize, moves: &mut Moves) {
        self.go(moves, Event::RollsBack(w), |s| {
            s.workers[w].session = Session::Over;
            s.workers[w].step = Step::Settling(Settle::Write(self.end_without_effect(w)));
        });
    }

    fn send_commit(&self, w: usize, moves: &mut Moves) {
        self.go(moves, Event::SendsCommit(w), |s| {
            s.workers[w].step = Step::Committing;
            if s.workers[w].session == Session::InTransaction {
                s.workers[w].session = Session::CommitSent;
            }
        });
    }

    /// From here on only the server knows, and only its answer counts.
    fn moves_at_commit(&self, w: usize, rules: &Rules, moves: &mut Moves) {
        let to = |step: Step| move |s: &mut State| s.workers[w].step = step;
        let batch = self.workers[w].mark.batch;
        let succeeded = Step::Settling(Settle::Write(End::Finished(JobState::Succeeded)));
        let unclear = Step::Settling(Settle::EndSession);
        let session = self.workers[w].session;
        match session {
            Session::Committed | Session::CommittedHere => {
                let settled = session == Session::Committed || rules.flaw == Some(Flaw::WarningIgnored);
                self.go(moves, Event::HearsOfCommit(w), |s| {
                    if rules.flaw == Some(Flaw::RecordAfterCommit) {
                        s.check_fence(w, rules);
                    }
                    s.workers[w].step = if settled { succeeded } else { unclear };
                    if settled && batch < rules.batches {
                        // The next one: what is recorded of this one stays until that one is recorded.
                        let kept = s.workers[w].kept;
                        let mark = Mark { batch: batch + 1, ..Mark::NONE };
                        let Worker { stop, buried, .. } = s.workers[w];
                        s.workers[w] =
                            Worker { step: Step::Claimed, mark, kept, knows: true, stop, buried, ..Worker::ABSENT };
                    }
                });
            }
            Session::RolledBack => self.roll_back(w, moves),
            Session::Over => self.go(moves, Event::HearsOfCommit(w), to(unclear)),
            _ => {}
        }
        let Some(stop) = self.stop(w) else { return };
        match session {
            Session::CommitSent => {
                self.go(moves, Event::PressesCommit(w), |s| s.workers[w].session = Session::RolledBack);
            }
            Session::AwaitsStandby => {
                self.go(moves, Event::PressesCommit(w), |s| s.workers[w].session = Session::CommittedHere);
            }
            _ => {}
        }
        let next = match (rules.flaw, stop) {
            (Some(Flaw::CancelledUnanswered), Stop::Cancel) | (Some(Flaw::HandedBackUnanswered), Stop::Shutdown) => {
                Step::Settling(Settle::Write(self.end_without_effect(w)))
            }
            _ => unclear,
        };
        self.go(moves, Event::GivesCommitUp(w), to(next));
    }

    /// What queue and target do with what was sent to them, in their own time.
    fn moves_of_servers(&self, w: usize, rules: &Rules, moves: &mut Moves) {
        let worker = &self.workers[w];
        if worker.record == Record::Checked {
            self.go(moves, Event::QueueWritesRecord(w), |s| {
                s.workers[w].record = Record::Written;
                // The row of the job is locked for it: it isn't written under a lease that is over.
                if s.holds_lease(w) {
                    s.workers[w].kept = Some(worker.mark);
                    if worker.knows && rules.flaw != Some(Flaw::CursorNotMoved) {
                        s.job.done = worker.mark.batch - 1;
                    }
                    if rules.flaw == Some(Flaw::CursorMovedEarly) {
                        s.job.done = worker.mark.batch;
                    }
                }
                s.workers[w].knows = false;
            });
        }
        match worker.session {
            Session::CommitSent => self.go(moves, Event::TargetExecutesCommit(w), |s| {
                s.target.append(Entry::Commit { xid: worker.mark.xid, effect: worker.mark.batch });
                if rules.flaw != Some(Flaw::CommitNotDurable) {
                    s.target.flushed = s.target.written;
                }
                let waits = rules.synchronous && rules.flaw != Some(Flaw::CommitNotDurable);
                s.workers[w].session = if waits { Session::AwaitsStandby } else { Session::Committed };
            }),
            Session::AwaitsStandby => self.go(moves, Event::StandbyConfirmsCommit(w), |s| {
                s.target.flush(rules);
                s.workers[w].session = Session::Committed;
            }),
            _ => {}
        }
    }

    /// It is at work from the moment at which it buried somebody.
    fn moves_of_rescuer(&self, rules: &Rules, moves: &mut Moves) {
        let late = rules.flaw == Some(Flaw::SessionsEndedTooLate);
        match self.rescuer {
            None => {}
            Some((w, Settle::Write(end))) => self.go(moves, Event::WritesEnd(w), |s| {
                s.rescuer = None;
                if late {
                    s.end_session(w);
                }
                if s.holds_lease(w) {
                    s.write(end, rules);
                }
            }),
            Some((w, at)) => self.settle(w, at, rules, End::HandBack, moves, |s, at| s.rescuer = Some((w, at))),
        }
    }

    /// One step of [`Settle`]. `no_effect` is what is written when there is none.
    fn settle(
        &self,
        w: usize,
        at: Settle,
        rules: &Rules,
        no_effect: End,
        moves: &mut Moves,
        then: impl Fn(&mut State, Settle),
    ) {
        match at {
            Settle::EndSession => self.go(moves, Event::EndsSession(w), |s| {
                if rules.flaw != Some(Flaw::SessionsNotEnded) {
                    s.end_session(w);
                }
                then(s, Settle::ReadRecord);
            }),
            Settle::ReadRecord => self.go(moves, Event::ReadsRecord(w), |s| {
                let found = s.workers[w].kept.is_some();
                then(s, if found { Settle::AskTarget } else { Settle::Write(no_effect) });
            }),
            Settle::AskTarget => {
                let target = &self.target;
                // It was found, and only its own attempt would replace it: that one has no session any more.
                let Some(mark) = self.workers[w].kept else { return };
                let status = self.status(mark.xid, target.entries(), target.next_xid);
                if let Some(end) = self.verdict(mark, status, rules, no_effect) {
                    self.go(moves, Event::AsksTarget(w), |s| {
                        if status == XactStatus::Committed && rules.flaw != Some(Flaw::CommittedNotFlushed) {
                            s.target.flush(rules);
                        }
                        let moves = rules.flaw != Some(Flaw::CursorNotMovedBySettling) || mark.batch == rules.batches;
                        if status == XactStatus::Committed && end != UNKNOWN && moves {
                            s.job.done = s.job.done.max(mark.batch);
                        }
                        then(s, Settle::Write(end));
                    });
                }
                if self.faults_left > 0 && matches!(status, XactStatus::Committed | XactStatus::Aborted) {
                    let end = self.verdict(mark, XactStatus::TooOld, rules, no_effect);
                    self.fault(moves, Event::TargetForgot(w), |s| {
                        s.forgot = true;
                        then(s, end.map_or(Settle::AskTarget, Settle::Write));
                    });
                }
                // A standby can't be flushed, so that nobody takes its answer for the primary's.
                if rules.flaw == Some(Flaw::StandbyAsked) && self.faults_left > 0 {
                    let log = &target.log[..usize::from(target.on_standby)];
                    let status = self.status(mark.xid, log, target.next_xid);
                    if let Some(end) = self.verdict(mark, status, rules, no_effect) {
                        self.fault(moves, Event::ReachesStandby(w), |s| then(s, Settle::Write(end)));
                    }
                }
            }
            Settle::Write(_) => {}
        }
    }

    /// What the target's answer means. `None`: ask again.
    fn verdict(&self, mark: Mark, status: XactStatus, rules: &Rules, no_effect: End) -> Option<End> {
        let target = &self.target;
        if mark.system != target.system && rules.flaw != Some(Flaw::SystemNotCompared) {
            return Some(UNKNOWN);
        }
        let believed = rules.synchronous || rules.flaw == Some(Flaw::TimelineNotCompared);
        if mark.timeline != target.timeline && !believed {
            return Some(UNKNOWN);
        }
        match status {
            // A batch before the last: the job goes on, or ends as if nothing had been under way.
            XactStatus::Committed if mark.batch < rules.batches => Some(no_effect),
            XactStatus::Committed => Some(End::Finished(JobState::Succeeded)),
            XactStatus::Aborted | XactStatus::InTheFuture => Some(no_effect),
            XactStatus::TooOld => Some(UNKNOWN),
            XactStatus::InProgress => None,
        }
    }

    /// Writes the end of the attempt that holds the lease.
    fn write(&mut self, end: End, rules: &Rules) {
        self.job.state = match end {
            End::Finished(state) => state,
            End::HandBack if self.job.cancel_requested => JobState::Cancelled,
            End::HandBack => {
                self.job.interruptions += 1;
                let poison = self.job.interruptions >= rules.poison_at;
                if poison { JobState::Failed(Code::Poison) } else { JobState::Queued }
            }
        };
    }
}
