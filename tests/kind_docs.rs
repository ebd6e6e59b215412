//! The tables of arguments in docs/kinds are what the types say: written from them, and compared.
//!
//! `SLOWLANE_WRITE_DOCS=1 cargo test kind_docs` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use slowlane::work::Work;
use utoipa::ToSchema;

const BEGIN: &str = "<!-- begin: arguments, written by SLOWLANE_WRITE_DOCS=1 cargo test kind_docs -->\n";
const END: &str = "<!-- end: arguments -->\n";

/// A type's schema and those that it refers to.
struct Schemas {
    top: Value,
    others: BTreeMap<String, Value>,
}

impl Schemas {
    fn of<T: ToSchema>() -> Schemas {
        let mut others = Vec::new();
        T::schemas(&mut others);
        let others = others.into_iter().map(|(name, schema)| (name, serde_json::to_value(schema).unwrap())).collect();
        Schemas { top: serde_json::to_value(T::schema()).unwrap(), others }
    }

    fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        let name = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
        name.map_or(schema, |name| &self.others[name])
    }

    /// The one of several that isn't null: what an optional value is when it is there.
    fn present<'s>(&'s self, schema: &'s Value) -> &'s Value {
        let schema = self.resolve(schema);
        let choices = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array());
        let Some(choices) = choices else { return schema };
        let mut present = choices.iter().filter(|choice| choice["type"] != "null");
        match (present.next(), present.next()) {
            (Some(only), None) => self.present(only),
            _ => schema,
        }
    }

    fn type_name(&self, schema: &Value) -> String {
        let schema = self.present(schema);
        if let Some(words) = schema["enum"].as_array() {
            return words.iter().map(|word| format!("`{}`", word.as_str().unwrap())).collect::<Vec<_>>().join(", ");
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            return choices.iter().map(|choice| self.type_name(choice)).collect::<Vec<_>>().join(" or ");
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind.as_str()],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect(),
            _ => vec![],
        };
        match kinds.as_slice() {
            ["string"] if schema["format"] == "uuid" => "id".to_owned(),
            ["string"] => "text".to_owned(),
            ["array"] => format!("array of {}", plural(&self.type_name(&schema["items"]))),
            ["object"] if schema["additionalProperties"].is_object() => {
                format!("object of {}", plural(&self.type_name(&schema["additionalProperties"])))
            }
            [one] => (*one).to_owned(),
            _ => "value".to_owned(),
        }
    }

    fn rows(&self, schema: &Value, path: &str, out: &mut String) {
        let schema = self.present(schema);
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let Some(properties) = schema["properties"].as_object() else { return };
        let (needed_ones, others): (Vec<_>, Vec<_>) =
            properties.iter().partition(|(name, _)| required.contains(&name.as_str()));
        for (name, property) in needed_ones.into_iter().chain(others) {
            let kind = self.type_name(property);
            let needed = if required.contains(&name.as_str()) { "yes" } else { "" };
            // Of an optional value it stands with what it is when it is there.
            let choices = property["oneOf"].as_array().into_iter().flatten();
            let mut described = std::iter::once(property).chain(choices).chain([self.present(property)]);
            let meaning = described.find_map(|schema| schema["description"].as_str());
            let meaning = meaning.unwrap_or_default().replace('\n', " ").replace('|', "\\|");
            assert!(!meaning.is_empty(), "{path}{name} has no description");
            writeln!(out, "| `{path}{name}` | {kind} | {needed} | {meaning} |").unwrap();
            let inner = self.present(property);
            self.rows(inner, &format!("{path}{name}."), out);
            self.rows(&inner["items"], &format!("{path}{name}[]."), out);
            if inner["additionalProperties"].is_object() {
                self.rows(&inner["additionalProperties"], &format!("{path}{name}.*."), out);
            }
        }
    }
}

fn plural(kind: &str) -> String {
    match kind {
        "text" => "texts".to_owned(),
        _ if kind.starts_with('`') => format!("({kind})"),
        _ => format!("{kind}s"),
    }
}

fn table<W: Work + ToSchema>() -> (&'static str, String) {
    (W::KIND, table_of::<W>())
}

fn table_of<T: ToSchema>() -> String {
    let schemas = Schemas::of::<T>();
    let mut out = String::from("| argument | type | required | meaning |\n| --- | --- | --- | --- |\n");
    schemas.rows(&schemas.top, "", &mut out);
    out
}

fn tables() -> BTreeMap<&'static str, String> {
    use slowlane::kinds::{backfill, check, execute, import, maintain, query, refresh};
    use slowlane::work::validation;
    use slowlane::work::{STATEMENT, statement};
    [
        table::<query::Query>(),
        table::<backfill::Backfill>(),
        table::<check::Check>(),
        table::<execute::Execute>(),
        table::<import::Import>(),
        table::<maintain::Maintain>(),
        table::<refresh::Refresh>(),
        (STATEMENT, table_of::<statement::SavedStatement>()),
        table::<validation::Validate>(),
    ]
    .into()
}

fn page(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/kinds/{kind}.md"))
}

#[test]
fn the_tables_of_arguments_are_what_the_types_say() {
    for (kind, table) in tables() {
        let text = std::fs::read_to_string(page(kind)).unwrap_or_else(|error| panic!("docs/kinds/{kind}.md: {error}"));
        let (before, rest) =
            text.split_once(BEGIN).unwrap_or_else(|| panic!("docs/kinds/{kind}.md has no table of arguments"));
        let (_, after) = rest.split_once(END).unwrap();
        let right = format!("{before}{BEGIN}{table}{END}{after}");
        if std::env::var_os("SLOWLANE_WRITE_DOCS").is_some() {
            std::fs::write(page(kind), right).unwrap();
        } else {
            assert_eq!(
                text, right,
                "docs/kinds/{kind}.md: write it anew with SLOWLANE_WRITE_DOCS=1 cargo test kind_docs"
            );
        }
    }
}

#[test]
fn every_kind_has_a_page_with_what_a_user_needs_to_know() {
    let folder = tempfile::tempdir().unwrap();
    let registry = slowlane::kinds::standard().with_statements(folder.path()).unwrap();
    assert_eq!(registry.names(), tables().into_keys().collect::<Vec<_>>());
    for kind in registry.names() {
        let text = std::fs::read_to_string(page(kind)).unwrap_or_default();
        for part in ["```sh", "**Progress**", "**On cancel**", "**On a crash**", "**On lock contention**", "**Grants**"]
        {
            assert!(text.contains(part), "docs/kinds/{kind}.md says nothing of {part}");
        }
    }
}
