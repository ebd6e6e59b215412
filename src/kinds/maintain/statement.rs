//! The statements. Every name in them comes from the catalog, quoted by the server.

use super::Maintain;
use super::arguments::{IndexNulls, IndexOrder};
use super::definition::Definition;
use super::relation::Relation;

/// A list in parentheses behind a blank; nothing when there is nothing in it.
fn list(items: &[String]) -> String {
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

pub(super) fn create_index(args: &Maintain, relation: &Relation, definition: &Definition) -> String {
    let keys = definition.keys.iter().map(|key| {
        let mut text = key.column.quoted.clone();
        if let Some((_, opclass)) = &key.opclass {
            text = format!("{text} {opclass}");
        }
        match key.order {
            Some(IndexOrder::Asc) => text.push_str(" ASC"),
            Some(IndexOrder::Desc) => text.push_str(" DESC"),
            None => {}
        }
        match key.nulls {
            Some(IndexNulls::First) => text.push_str(" NULLS FIRST"),
            Some(IndexNulls::Last) => text.push_str(" NULLS LAST"),
            None => {}
        }
        text
    });
    let included: Vec<String> = definition.included.iter().map(|column| column.quoted.clone()).collect();
    let unique = if definition.unique { " UNIQUE" } else { "" };
    let include = if included.is_empty() { String::new() } else { format!(" INCLUDE{}", list(&included)) };
    format!(
        "CREATE{unique} INDEX{} {} ON {} USING {}{}{include}",
        concurrently(args),
        definition.quoted_name,
        relation.table,
        definition.method.as_str(),
        list(&keys.collect::<Vec<_>>()),
    )
}

fn concurrently(args: &Maintain) -> &'static str {
    if args.concurrently() { " CONCURRENTLY" } else { "" }
}
