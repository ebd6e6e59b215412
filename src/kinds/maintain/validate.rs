//! What a run would refuse, found by what the run finds it by, with the argument. Nothing is changed, and no lock is waited for
//! but those that a look at the catalog takes.

use super::definition::{Definition, There, quoted_columns};
use super::drop::must_be_free;
use super::relation::Relation;
use super::tables::Tables;
use super::{Action, Maintain, build, trial};
use crate::kinds::backfill::Misplaced;
use crate::pq::Session;
use crate::queue::ErrorCode;
use crate::work::WorkError;

impl Maintain {
    /// What stands in its way, as far as the catalog shows it.
    pub(super) fn look(&self, session: &mut Session) -> Result<(), Misplaced> {
        let found = match (&self.table, &self.index) {
            (None, Some(index)) => ("/index", Relation::of_index(session, index)),
            (table, _) => ("/table", Relation::find(session, table.as_deref().unwrap_or_default(), self.action)),
        };
        let (argument, relation) = match found {
            (argument, Ok(relation)) => (argument, relation),
            (argument, Err(WorkError::Fail(error)))
                if self.action == Action::DropIndex && error.code == ErrorCode::IndexNotFound =>
            {
                return self.may_be_missing(session, error).map_err(|error| Misplaced::at(argument, error));
            }
            (argument, Err(error)) => return Err(Misplaced::at(argument, error)),
        };
        let at = |error| Misplaced::at(argument, error);
        match self.action {
            Action::Vacuum | Action::Analyze => {
                quoted_columns(session, &relation, self.columns.as_deref().unwrap_or_default())?;
                let tables = Tables::look(session, &relation, self).map_err(at)?;
                tables.may_be_maintained(session.server_version(), self.action).map_err(at)
            }
            Action::Reindex => relation.may_be_indexed(session, self.action).map_err(at),
            Action::CreateIndex => {
                relation.may_be_indexed(session, self.action).map_err(at)?;
                self.look_at_definition(session, &relation)
            }
            Action::DropIndex => {
                relation.may_be_indexed(session, self.action).map_err(at)?;
                let index = relation.index.as_ref().map(|index| index.oid.as_str()).unwrap_or_default();
                must_be_free(session, index, self.concurrently()).map_err(|error| match &error {
                    WorkError::Fail(refused) if refused.code == ErrorCode::NotSupported => {
                        Misplaced::at("/concurrently", error)
                    }
                    _ => at(error),
                })
            }
        }
    }

    fn look_at_definition(&self, session: &mut Session, relation: &Relation) -> Result<(), Misplaced> {
        let definition = Definition::find(session, self, relation)?;
        let there = match definition.is_there(session, relation) {
            // That somebody builds it at the moment passes.
            Err(WorkError::Retry(_)) => There::Whole,
            there => there.map_err(|error| Misplaced::at("/name", error))?,
        };
        match there {
            There::Whole => Ok(()),
            There::Incomplete if self.concurrently() => Ok(()),
            There::Incomplete => Err(Misplaced::at("/concurrently", build::incomplete(&definition))),
            There::Nothing => {
                relation.may_get_an_index(session).map_err(|error| Misplaced::at("/table", error))?;
                match trial::refusal(session, &definition, relation)? {
                    Some(refused) => Err(refused.explained(|error| self.explain(error))),
                    None => Ok(()),
                }
            }
        }
    }
}
