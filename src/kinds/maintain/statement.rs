//! The statements. Every name in them comes from the catalog, quoted by the server.

use serde_json::Value;

use super::Maintain;
use super::relation::Relation;

/// A list in parentheses behind a blank; nothing when there is nothing in it.
pub(super) fn list(items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!(" ({})", items.join(", ")) }
}

fn options(given: &[(&str, Option<bool>)]) -> Vec<String> {
    given.iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value}"))).collect()
}

pub(super) fn vacuum(args: &Maintain, relation: &Relation, columns: &[String]) -> String {
    let mut given = options(&[
        ("FULL", args.full),
        ("FREEZE", args.freeze),
        ("ANALYZE", args.analyze),
        ("DISABLE_PAGE_SKIPPING", args.disable_page_skipping),
        ("SKIP_LOCKED", args.skip_locked),
        ("INDEX_CLEANUP", args.index_cleanup),
        ("TRUNCATE", args.truncate),
        ("PROCESS_TOAST", args.process_toast),
    ]);
    given.extend(args.parallel.map(|workers| format!("PARALLEL {workers}")));
    format!("VACUUM{} {}{}", list(&given), relation.table, list(columns))
}

pub(super) fn analyze(args: &Maintain, relation: &Relation, columns: &[String]) -> String {
    let given = options(&[("SKIP_LOCKED", args.skip_locked)]);
    format!("ANALYZE{} {}{}", list(&given), relation.table, list(columns))
}

pub(super) fn reindex(args: &Maintain, relation: &Relation) -> String {
    let what = if relation.index.is_some() { "INDEX" } else { "TABLE" };
    format!("REINDEX {what}{} {}", concurrently(args), relation.name())
}

fn concurrently(args: &Maintain) -> &'static str {
    if args.concurrently() { " CONCURRENTLY" } else { "" }
}

/// A job of this kind, as it is submitted.
pub(super) fn as_a_job(args: &Value) -> String {
    format!(r#"{{"kind":"maintain","args":{args}}}"#)
}
