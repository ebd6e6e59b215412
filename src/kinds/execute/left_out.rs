//! What a statement left out of what it was told, as far as the server warns of it, and whether that was all of it.
//!
//! A warning's words are the server's language, and its SQLSTATE is mostly that of every other one. So what was done is looked
//! at. Of each table that it analyzes the server says so, to whom wants to hear that much. A GRANT writes each object's rights
//! anew, changed or not; and of two warnings with one SQLSTATE the line of the server's source says which it is.

use crate::kinds::sql::first_word;
use crate::pq::Session;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;
use crate::work::context::{Unlogged, Warnings, WorkContext};

/// SQLSTATE `lock_not_available`.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The first version with rights on settings of the server.
const HAS_PARAMETER_RIGHTS: i32 = 150_000;
/// Sets what the session hears for a statement, unless it hears that much, and how long the statement may take.
const BEFORE: &str = "
    WITH own AS MATERIALIZED (SELECT pg_catalog.current_setting('client_min_messages') AS level)
    SELECT pg_catalog.set_config('statement_timeout', $1::pg_catalog.text, true),
           CASE WHEN own.level = ANY ($3::pg_catalog.text[]) THEN own.level END,
           CASE WHEN own.level = ANY ($3::pg_catalog.text[])
                THEN pg_catalog.set_config('client_min_messages', $2::pg_catalog.text, true) END
      FROM own";
/// Sets back what the session hears, unless the statement itself has set it.
const AFTER: &str = "SELECT pg_catalog.set_config('client_min_messages', $1::pg_catalog.text, true)
                      WHERE pg_catalog.current_setting('client_min_messages') = $2::pg_catalog.text";

/// What a session must hear at least.
#[derive(Clone, Copy)]
struct Level {
    name: &'static str,
    /// The levels at which it hears less, as an array.
    less: &'static str,
}

const WARNINGS: Level = Level { name: "warning", less: "{error,fatal,panic}" };
/// At this one the server says which tables it analyzes.
const ANALYZED: Level = Level { name: "debug2", less: "{debug1,info,log,notice,warning,error,fatal,panic}" };

/// A statement that changes rights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Grant,
    Revoke,
}

impl Change {
    /// The SQLSTATE by which the server warns that it left something out.
    fn not_done(self) -> &'static str {
        match self {
            Change::Grant => "01007",
            Change::Revoke => "01006",
        }
    }

    /// Statements of which nothing is done, as the server warns: nobody but the catalogs' owner has rights there to pass on.
    fn in_vain(self) -> [&'static str; 2] {
        match self {
            Change::Grant => [
                "GRANT USAGE ON TYPE pg_catalog.pg_lsn TO CURRENT_USER",
                "GRANT SELECT (lanname) ON pg_catalog.pg_language TO CURRENT_USER",
            ],
            Change::Revoke => [
                "REVOKE USAGE ON TYPE pg_catalog.pg_lsn FROM CURRENT_USER",
                "REVOKE SELECT (lanname) ON pg_catalog.pg_language FROM CURRENT_USER",
            ],
        }
    }
}

/// All rights in the database, and what the transaction has written of them.
struct Rights {
    /// A sum over all of them: another one when any has changed.
    sum: String,
    /// The last command of the transaction that wrote some; -1 for none.
    last_command: String,
    /// How many objects were written after the command that was asked about, and how many columns.
    objects: u64,
    columns: u64,
    /// One of these columns is one on which the role may pass something on.
    may_pass_on: bool,
}

/// What there was before a statement.
pub(super) struct Before {
    analyzes: bool,
    /// For a GRANT or a REVOKE.
    rights: Option<(Change, Rights)>,
    /// What the session was told to hear, and what it heard before.
    level: Option<(Level, String)>,
}

impl Before {
    /// Looks, and sets what the statement needs.
    pub fn look(ctx: &WorkContext<'_>, session: &mut Session, sql: &str) -> Result<Before, WorkError> {
        let first = first_word(sql).unwrap_or_default().to_ascii_uppercase();
        let change = match first.as_str() {
            "GRANT" => Some(Change::Grant),
            "REVOKE" => Some(Change::Revoke),
            _ => None,
        };
        let rights = match change {
            Some(change) => Some((change, Rights::look(session, "-1")?)),
            None => None,
        };
        let analyzes = ["ANALYZE", "ANALYSE"].contains(&first.as_str());
        let level = if analyzes { ANALYZED } else { WARNINGS };
        let left = ctx.statement_ms_left().to_string();
        let rows = session.query(BEFORE, &[Some(&left), Some(level.name), Some(level.less)])?;
        let level = rows.get(0, 1).map(|own| (level, own.to_owned()));
        // What the session wouldn't have heard isn't for the log.
        let debug = level.is_some() && analyzes;
        ctx.unlogged(if debug { Unlogged::Debug } else { Unlogged::Nothing });
        ctx.take_warnings();
        Ok(Before { analyzes, rights, level })
    }

    /// The statement's warnings. Fails when it did nothing but warn.
    pub fn something_was_done(self, ctx: &WorkContext<'_>, session: &mut Session) -> Result<Warnings, WorkError> {
        ctx.unlogged(Unlogged::Nothing);
        let warnings = ctx.take_warnings();
        if let Some((level, own)) = &self.level {
            session.query(AFTER, &[Some(own), Some(level.name)])?;
        }
        if self.analyzes && warnings.total > 0 && !warnings.analyzed {
            let hint = "the role has to be a member of the table's owner or the database's, or from Postgres 17 on have MAINTAIN";
            return Err(all_skipped(&warnings, None, hint));
        }
        match &self.rights {
            Some((change, before))
                if warnings.has(change.not_done()) && !before.changed(*change, ctx, session, &warnings)? =>
            {
                let hint = "the role has to own what it grants rights on, or to have them WITH GRANT OPTION";
                Err(all_skipped(&warnings, Some(change.not_done()), hint))
            }
            _ => Ok(warnings),
        }
    }
}

impl Rights {
    /// As they are. What the transaction has written is counted from behind this command of it on.
    fn look(session: &mut Session, behind: &str) -> Result<Rights, WorkError> {
        let parameters = match session.server_version() >= HAS_PARAMETER_RIGHTS {
            true => "UNION ALL SELECT xmin, cmin, oid, 'parameter', paracl FROM pg_catalog.pg_parameter_acl",
            false => "",
        };
        let sql = format!(
            "SELECT pg_catalog.sum(pg_catalog.hashtextextended(oid::text || ' ' || part || ' ' || acl::text, 0)::numeric)
                        FILTER (WHERE acl IS NOT NULL),
                    coalesce(pg_catalog.max(cmin::text::int8) FILTER (WHERE ours), -1),
                    pg_catalog.count(*) FILTER (WHERE ours AND cmin::text::int8 > $1::int8 AND part NOT LIKE 'attribute %'),
                    pg_catalog.count(*) FILTER (WHERE ours AND cmin::text::int8 > $1::int8 AND part LIKE 'attribute %'),
                    pg_catalog.bool_or(pg_catalog.has_any_column_privilege(oid, 'SELECT WITH GRANT OPTION, '
                        'INSERT WITH GRANT OPTION, UPDATE WITH GRANT OPTION, REFERENCES WITH GRANT OPTION'))
                        FILTER (WHERE ours AND cmin::text::int8 > $1::int8 AND part LIKE 'attribute %')
               FROM (
          SELECT xmin, cmin, oid, 'class' AS part, relacl AS acl FROM pg_catalog.pg_class
    UNION ALL SELECT xmin, cmin, attrelid, 'attribute ' || attnum, attacl FROM pg_catalog.pg_attribute
    UNION ALL SELECT xmin, cmin, oid, 'proc', proacl FROM pg_catalog.pg_proc
    UNION ALL SELECT xmin, cmin, oid, 'type', typacl FROM pg_catalog.pg_type
    UNION ALL SELECT xmin, cmin, oid, 'namespace', nspacl FROM pg_catalog.pg_namespace
    UNION ALL SELECT xmin, cmin, oid, 'database', datacl FROM pg_catalog.pg_database
    UNION ALL SELECT xmin, cmin, oid, 'tablespace', spcacl FROM pg_catalog.pg_tablespace
    UNION ALL SELECT xmin, cmin, oid, 'language', lanacl FROM pg_catalog.pg_language
    UNION ALL SELECT xmin, cmin, oid, 'wrapper', fdwacl FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL SELECT xmin, cmin, oid, 'server', srvacl FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT xmin, cmin, oid, 'object', lomacl FROM pg_catalog.pg_largeobject_metadata
    {parameters}) written,
              LATERAL (SELECT coalesce(xmin = pg_catalog.pg_current_xact_id_if_assigned()::xid, false)) its (ours)
              WHERE acl IS NOT NULL OR ours"
        );
        let rows = session.query(&sql, &[Some(behind)])?;
        let text = |column| rows.get(0, column).unwrap_or_default().to_owned();
        let count = |column| text(column).parse().unwrap_or(0);
        Ok(Rights {
            sum: text(0),
            last_command: text(1),
            objects: count(2),
            columns: count(3),
            may_pass_on: text(4) == "t",
        })
    }

    /// Some right is another one now; or what was asked for was there already, of something that the server may do it with.
    fn changed(
        &self,
        change: Change,
        ctx: &WorkContext<'_>,
        session: &mut Session,
        warnings: &Warnings,
    ) -> Result<bool, WorkError> {
        let now = Rights::look(session, &self.last_command)?;
        if self.sum != now.sum {
            return Ok(true);
        }
        let Some([object, column]) = lines_of_nothing(change, ctx, session)? else { return Ok(true) };
        let state = change.not_done();
        let at = |line: &str| warnings.by_place.get(&(state.to_owned(), line.to_owned())).copied().unwrap_or(0);
        let any: u64 = warnings.by_place.iter().filter(|((of, _), _)| of == state).map(|(_, count)| count).sum();
        let (objects, columns) = (at(&object), at(&column));
        // A column without rights of its own isn't written where nothing is granted: how many were asked for isn't known.
        let of_columns = now.columns > columns || (now.objects == 0 && objects == 0 && now.may_pass_on);
        Ok(any > objects + columns || now.objects > objects || of_columns)
    }
}

/// The lines of the server's source by which it warns that nothing at all was done: with an object, and with a column. They
/// are found by doing nothing in vain. `None` where they can't be.
fn lines_of_nothing(
    change: Change,
    ctx: &WorkContext<'_>,
    session: &mut Session,
) -> Result<Option<[String; 2]>, WorkError> {
    ctx.unlogged(Unlogged::Everything);
    let lines = change.in_vain().map(|sql| line_of(change, sql, ctx, session));
    ctx.unlogged(Unlogged::Nothing);
    let [object, column] = lines;
    Ok(object?.zip(column?).map(|(object, column)| [object, column]))
}

fn line_of(
    change: Change,
    sql: &str,
    ctx: &WorkContext<'_>,
    session: &mut Session,
) -> Result<Option<String>, WorkError> {
    session.execute_batch("SAVEPOINT slowlane_rights; SET LOCAL client_min_messages = 'warning'")?;
    ctx.take_warnings();
    let tried = session.execute_batch(sql);
    let warnings = ctx.take_warnings();
    session.execute_batch("ROLLBACK TO slowlane_rights; RELEASE slowlane_rights")?;
    let line = warnings.by_place.into_keys().find(|(state, _)| state == change.not_done()).map(|(_, line)| line);
    Ok(line.filter(|_| tried.is_ok()))
}

fn all_skipped(warnings: &Warnings, state: Option<&str>, hint: &str) -> WorkError {
    let told = warnings.kept.iter().find(|warning| state.is_none_or(|state| warning.sqlstate == state));
    let message = format!(
        "the server left out all that the statement asked for: {}",
        told.map(|warning| warning.message.as_str()).unwrap_or_default()
    );
    let locked = warnings.kept.iter().all(|warning| warning.sqlstate == LOCK_NOT_AVAILABLE);
    let error = JobError::new(ErrorCode::AllSkipped, message);
    let error = if locked { error.retryable() } else { error.with_hint(hint) };
    WorkError::of(JobError { sqlstate: told.map(|warning| warning.sqlstate.clone()), ..error })
}
