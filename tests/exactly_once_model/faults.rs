//! What may go wrong between any two steps.

use super::*;

impl State {
    pub(super) fn faults_of_attempt(&self, w: usize, rules: &Rules, moves: &mut Moves) {
        let worker = &self.workers[w];
        if self.fence_passes(w) {
            let poison = self.job.interruptions + 1 >= rules.poison_at;
            let begin = match rules.flaw {
                Some(Flaw::NobodyRescues) => None,
                Some(Flaw::CancelledUnread) if self.job.cancel_requested => Some(Settle::Write(End::HandBack)),
                Some(Flaw::PoisonUnread) if poison => Some(Settle::Write(End::HandBack)),
                Some(Flaw::SessionsEndedTooLate) => Some(Settle::ReadRecord),
                _ => Some(Settle::EndSession),
            };
            self.fault(moves, Event::IsBuried(w), |s| {
                s.workers[w].buried = true;
                s.rescuer = begin.map(|at| (w, at));
            });
        }
        if worker.step == Step::Recording {
            // It writes it again, or gives up; a request to stop has it do the latter anyway.
            self.fault(moves, Event::LosesAnswerToRecord(w), |s| s.workers[w].step = Step::Flushed);
            self.fault(moves, Event::LosesAnswerToRecord(w), |s| {
                s.end_session(w);
                s.workers[w].step = Step::Settling(Settle::Write(self.end_without_effect(w)));
            });
        }
        if worker.step == Step::Committing {
            self.fault(moves, Event::LosesAnswerToCommit(w), |s| {
                s.workers[w].step = Step::Settling(Settle::EndSession);
            });
        }
        if self.holds_lease(w) && worker.stop.is_none() && (worker.may_roll_back() || worker.step == Step::Committing) {
            self.fault(moves, Event::DeadlinePasses(w), |s| s.workers[w].stop = Some(Stop::Deadline));
            self.fault(moves, Event::ShutsDown(w), |s| s.workers[w].stop = Some(Stop::Shutdown));
        }
    }

    pub(super) fn faults_of_target(&self, rules: &Rules, moves: &mut Moves) {
        if !self.has_ended() && !self.job.cancel_requested {
            self.fault(moves, Event::CancelIsRequested, |s| {
                s.job.cancel_requested = true;
                if s.job.state == JobState::Queued {
                    s.job.state = JobState::Cancelled;
                }
            });
        }
        self.fault(moves, Event::QueueCrashes, |s| {
            for worker in &mut s.workers {
                let volatile = rules.flaw == Some(Flaw::RecordNotDurable) && worker.record == Record::Written;
                if volatile || worker.record == Record::Checked {
                    worker.record = Record::None;
                    if volatile {
                        worker.kept = None;
                    }
                    if worker.step == Step::Recording {
                        worker.step = Step::Flushed;
                    }
                }
            }
        });
        let target = &self.target;
        for kept in target.flushed..=target.written {
            self.fault(moves, Event::TargetCrashes(kept), |s| s.lose(kept));
        }
        let certain = if rules.synchronous { target.on_standby } else { 0 };
        for kept in certain..=target.written {
            self.fault(moves, Event::TargetFailsOver(kept), |s| {
                s.lose(kept);
                s.target.timeline += 1;
                s.target.on_standby = kept;
                s.lost_what_was_seen |=
                    !rules.synchronous && self.sees_effect() && s.target.effects() < target.effects();
            });
        }
        for copied in BTreeSet::from([false, target.effects() > 0]) {
            let effects = if copied { target.effects_of_batches() } else { [0; BATCHES] };
            self.fault(moves, Event::TargetIsReplaced { copied }, |s| {
                s.target =
                    Target { system: target.system + 1, last_xid: 0, copied: effects, on_standby: 0, ..s.target };
                s.lose(0);
                s.lost_what_was_seen |= self.sees_effect() && !copied && target.effects() > 0;
            });
        }
    }
}
