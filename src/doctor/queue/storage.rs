//! How the queue's tables and indexes are stored: sizes, dead rows, the room for results, and the settings of autovacuum.
//! Knows nothing of jobs and processes.

use serde_json::{Map, Value, json};

use crate::doctor::look::{Look, bytes};
use crate::doctor::report::{Finding, FindingCode, Severity};
use crate::pq::quote::identifier;

/// Dead rows of a table that are worth a word.
const DEAD_ROWS: i64 = 50_000;
/// An index below this is never called too large, in bytes.
const INDEX_BYTES: i64 = 16 << 20;
/// What an entry of an index takes when it is well filled, in bytes, at most.
const ENTRY_BYTES: i64 = 100;
/// So many times what its entries need is too large.
const INDEX_FACTOR: i64 = 8;
/// So many are worth a word, however lately they were vacuumed.
const MANY_DEAD_ROWS: i64 = 1_000_000;
/// What the migration sets: without it dead rows of claims and of checkpoints pile up.
const OPTIONS: [(&str, [&str; 3]); 2] = [
    (
        "jobs",
        ["autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000", "autovacuum_vacuum_cost_delay=0"],
    ),
    (
        "job_checkpoints",
        ["autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000", "autovacuum_vacuum_cost_delay=0"],
    ),
];

pub(super) fn tables(look: &mut Look<'_>, store_bytes: i64) {
    let sql = "SELECT regexp_replace(c.relname, '_[0-9]{8}$', ''), sum(pg_total_relation_size(c.oid))::bigint,
                      sum(coalesce(s.n_live_tup, 0))::bigint, sum(coalesce(s.n_dead_tup, 0))::bigint,
                      max(greatest(s.last_autovacuum, s.last_vacuum))::text, bool_or(c.relpersistence = 'u'),
                      coalesce(max(greatest(s.last_autovacuum, s.last_vacuum)) > clock_timestamp() - interval '10 minutes', false)
                 FROM pg_class c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
                WHERE c.relnamespace = 'slowlane'::regnamespace AND c.relkind = 'r' AND c.relname !~ '^__diesel'
                GROUP BY 1 ORDER BY 2 DESC";
    let Some(answer) = look.ask("the sizes of tables", sql, &[]) else { return };
    let mut facts = Map::new();
    let keepers = [FindingCode::OldTransaction, FindingCode::PreparedTransaction, FindingCode::ReplicationSlot];
    let kept = look.report.findings.iter().any(|finding| keepers.contains(&finding.code));
    for row in 0..answer.len() {
        let (name, size) = (answer.text(row, 0), answer.number(row, 1).unwrap_or(0));
        let (live, dead) = (answer.number(row, 2).unwrap_or(0), answer.number(row, 3).unwrap_or(0));
        let vacuumed = answer.text(row, 4);
        facts.insert(
            name.to_owned(),
            json!({"bytes": size, "live_rows": live, "dead_rows": dead, "vacuumed_at": some(vacuumed)}),
        );
        // A busy queue has as many between two vacuums, and they go, unless somebody keeps them.
        let goes = answer.is(row, 6) && dead < MANY_DEAD_ROWS && !kept;
        if dead >= DEAD_ROWS && dead > live && !goes {
            let since =
                if vacuumed.is_empty() { "never vacuumed".to_owned() } else { format!("last vacuumed {vacuumed}") };
            let detail = format!(
                "slowlane.{name} has {dead} dead rows beside {live} that live ({since}, {} with its indexes)",
                bytes(size)
            );
            let fix = "see what keeps them: an old transaction, a prepared one, a slot; then vacuum";
            let finding = Finding::new(FindingCode::DeadRows, Severity::Warning, detail, fix);
            look.report.find(finding.sql(format!("VACUUM (ANALYZE) slowlane.{}", identifier(name))));
        }
        if answer.is(row, 5) && name != "job_progress" {
            let detail =
                format!("slowlane.{name} is UNLOGGED: a crash of the server empties it, and with it what was accepted");
            let finding =
                Finding::new(FindingCode::UnloggedTable, Severity::Error, detail, "make it a logged table again");
            look.report.find(finding.sql(format!("ALTER TABLE slowlane.{} SET LOGGED", identifier(name))));
        }
    }
    look.fact("tables", Value::Object(facts));
    store(look, store_bytes);
    autovacuum_settings(look);
}

/// How full the store is, counted as accepting counts it.
fn store(look: &mut Look<'_>, store_bytes: i64) {
    let sql = "SELECT ((SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits
                         WHERE inhparent = 'slowlane.result_parts'::regclass)
                     + (SELECT coalesce(sum(bytes), 0) FROM slowlane.uploads))::bigint";
    let stored = look.ask("the store of results", sql, &[]).and_then(|answer| answer.number(0, 0));
    let Some(stored) = stored else { return };
    look.fact("stored_bytes", stored);
    if store_bytes > 0 && stored.saturating_mul(5) >= store_bytes.saturating_mul(4) {
        let detail = format!(
            "results and uploads take {} of the {} that result_store_bytes allows: above it new ones are refused",
            bytes(stored),
            bytes(store_bytes)
        );
        let fix = "delete results that are no longer needed, give them a shorter result_ttl_ms, or raise result_store_bytes with the disk";
        look.find(FindingCode::StoreFilling, Severity::Warning, detail, fix);
    }
}

/// What the migration sets on tables that change most is still so.
fn autovacuum_settings(look: &mut Look<'_>) {
    for (table, wanted) in OPTIONS {
        let sql = "SELECT coalesce((SELECT string_agg(option_name || '=' || option_value, ' ') FROM pg_options_to_table(reloptions)), ''),
                          EXISTS (SELECT FROM pg_options_to_table(reloptions)
                                   WHERE option_name = 'autovacuum_enabled' AND NOT option_value::boolean)
                     FROM pg_class WHERE oid = to_regclass($1)";
        let name = format!("slowlane.{table}");
        let Some(answer) = look.ask("autovacuum settings of the queue's tables", sql, &[Some(&name)]) else { return };
        look.fact(&format!("{table}_options"), answer.text(0, 0));
        let given: Vec<&str> = answer.text(0, 0).split(' ').collect();
        if wanted.iter().all(|option| given.contains(option)) && !answer.is(0, 1) {
            continue;
        }
        let detail = format!(
            "{name} has lost the autovacuum settings of its migration: by the server's own it is vacuumed late, and dead rows pile up"
        );
        let finding =
            Finding::new(FindingCode::AutovacuumSettings, Severity::Warning, detail, "set them again, as the owner");
        let options: Vec<String> = wanted.iter().map(|option| option.replacen('=', " = ", 1)).collect();
        look.report.find(
            finding
                .sql(format!("ALTER TABLE {name} RESET (autovacuum_enabled)"))
                .sql(format!("ALTER TABLE {name} SET ({})", options.join(", "))),
        );
    }
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

pub(super) fn indexes(look: &mut Look<'_>) {
    // An index that no vacuum has been at says nothing of its entries: then those of its table are as many at most.
    let sql = "SELECT i.relname, t.relname, pg_relation_size(i.oid), greatest(i.reltuples, s.n_live_tup, 0)::bigint, x.indisvalid
                 FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
                 LEFT JOIN pg_stat_all_tables s ON s.relid = t.oid
                WHERE t.relnamespace = 'slowlane'::regnamespace AND i.relkind = 'i' ORDER BY 3 DESC LIMIT 200";
    let Some(answer) = look.ask("the sizes of indexes", sql, &[]) else { return };
    let mut facts = Map::new();
    for row in 0..answer.len() {
        let (name, size, entries) =
            (answer.text(row, 0), answer.number(row, 2).unwrap_or(0), answer.number(row, 3).unwrap_or(0));
        facts.insert(name.to_owned(), json!({"bytes": size, "entries": entries}));
        let sql = format!("REINDEX INDEX CONCURRENTLY slowlane.{}", identifier(name));
        let fix = "build it anew, as the owner; it keeps no writer out";
        if !answer.is(row, 4) {
            let detail = format!(
                "the index slowlane.{name} of {} is invalid: it is written, and serves no query",
                answer.text(row, 1)
            );
            look.report.find(Finding::new(FindingCode::InvalidIndex, Severity::Error, detail, fix).sql(sql));
        } else if size >= INDEX_BYTES && size > entries.saturating_mul(ENTRY_BYTES).saturating_mul(INDEX_FACTOR) {
            let detail = format!(
                "the index slowlane.{name} takes {} for {entries} entries: what was in it was kept by an old transaction, or is gone",
                bytes(size)
            );
            look.report.find(Finding::new(FindingCode::IndexBloat, Severity::Warning, detail, fix).sql(sql));
        }
    }
    look.fact("indexes", Value::Object(facts));
}
