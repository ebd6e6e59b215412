//! docs/dsn.md is what the code does: written from it, and compared.
//!
//! `SLOWLANE_WRITE_DOCS=1 cargo test dsn_docs` writes it anew.

use std::fmt::Write;
use std::path::Path;

use slowlane::dsn::driver::Dialect;
use slowlane::dsn::{self, Code, Driver, adonet, foreign};
use slowlane::pq;

/// Strings as people have them, and as slowlane reads them.
const EXAMPLES: [&str; 46] = [
    "postgresql://app:secret@db/app",
    "postgres://app:secret@db1:5432,db2:5433/app?target_session_attrs=read-write",
    "host=db dbname=app user=app password='se cret'",
    "service=reports",
    "postgresql://app:secret@%2Frun%2Fpostgresql/app",
    "postgresql://app:secret@[::1]:5432/app",
    "postgresql+asyncpg://app:secret@db/app?ssl=require",
    "postgresql+psycopg2://app:secret@/app?host=db1:5432&host=db2:5432",
    "postgresql+psycopg://app:secret@db/app",
    "POSTGRESQL://app:secret@db/app",
    "postgis://app:secret@db/app",
    "jdbc:postgresql://db/app?user=app&password=secret&ssl=true&currentSchema=sales",
    "postgresql://app:secret@db/app?schema=sales&connection_limit=5",
    "postgresql://app:secret@db/app?sslmode=no-verify",
    "postgresql://app:secret@db/app?options=-c+search_path%3Dsales",
    "postgres://app:secret@db/app?sslmode=verify-full&pool_max_conns=10&default_query_exec_mode=exec",
    "postgres://app:secret@db/app?binary_parameters=yes",
    "postgresql://app:secret@db/app?pool=5&prepared_statements=false&schema_search_path=sales,public",
    "postgres://app:secret@db/app?ssl-mode=require&statement-cache-capacity=100&options[search_path]=sales",
    "postgresql://app:secret@db/app?serverVersion=16&charset=utf8",
    "postgres://app:secret@db/app?sslmode=require&supa=base-pooler.x",
    "ecto://app:secret@db/app?ssl=true&pool_size=10",
    "pdo-pgsql://app:secret@db/app",
    "Host=db;Username=app;Password=secret;Database=app;SSL Mode=VerifyFull;Maximum Pool Size=20",
    "postgres://app:secret@/cloudsql/project:region:instance/app",
    "\"postgresql://app:secret@db/app\"\n",
    "postgresql://app:se cret@db/app",
    "PostgreSQL+AsyncPG://app:secret@db/app",
    "mysql://app:secret@db/app",
    "asyncpg://app:secret@db/app",
    "postgresql:/app:secret@db/app",
    "app",
    "postgresql://app:sec@ret@db/app",
    "postgresql://app:sec%ret@db/app",
    "postgresql://app:secret@db:abc/app",
    "postgresql://app:secret@[::1/app",
    "postgresql://app:secret@db/app?SslMode=require",
    "postgresql://app:secret@db/app?application_name=a&connect_timeout=soon",
    "postgresql://app:secret@db/app?sslmode=disable&sslmode=require",
    "postgresql://app:${DB_PASSWORD}@db/app",
    "postgresql://app:***@db/app",
    "DATABASE_URL=postgresql://app:secret@db/app",
    "psql 'postgresql://app:secret@db/app'",
    "postgresql://app:secret@db/app\"",
    "postgresql://app:secret@/opt/sockets/app",
    "pgsql:host=db;dbname=app;user=app;password=secret",
];

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', "⏎")
}

fn forms() -> String {
    let mut out = String::from("| string | outcome | read as, or why not |\n| --- | --- | --- |\n");
    for text in EXAMPLES {
        let (outcome, told) = match dsn::read(text, pq::parameters()) {
            Ok(reading) if reading.changes.is_empty() => ("accept", format!("`{}`", reading.dsn.masked())),
            Ok(reading) => {
                let changes: Vec<&str> = reading.changes.iter().map(|change| change.text.as_str()).collect();
                ("translate", format!("`{}`: {}", reading.dsn.masked(), changes.join("; ")))
            }
            Err(error) => ("refuse", format!("`{}`: {}", error.code.as_str(), error.message)),
        };
        writeln!(out, "| `{}` | {outcome} | {} |", cell(text), cell(&told)).unwrap();
    }
    out
}

fn drivers() -> String {
    let mut out = String::from("| family | driver | asynchronous |\n| --- | --- | --- |\n");
    let alchemy = Dialect::ALL.into_iter().map(Driver::SqlAlchemy);
    for driver in Driver::FAMILIES.into_iter().chain(alchemy) {
        let word = match driver.asynchronous() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "either",
        };
        writeln!(out, "| {} | {} | {word} |", driver.family(), driver.name()).unwrap();
    }
    out
}

fn codes() -> String {
    let mut out = String::from("| code | meaning |\n| --- | --- |\n");
    for code in Code::ALL {
        writeln!(out, "| `{}` | {} |", code.as_str(), code.meaning()).unwrap();
    }
    out
}

fn parameters() -> String {
    let mut out = String::from("| parameter | shows | becomes |\n| --- | --- | --- |\n");
    for foreign in foreign::TABLE {
        let shows = foreign.shows.map_or("", Driver::family);
        writeln!(out, "| `{}` | {shows} | {} |", foreign.name, cell(&foreign.how.to_string())).unwrap();
    }
    out +=
        "\nNpgsql's keywords, in any case and with or without their blanks:\n\n| keyword | becomes |\n| --- | --- |\n";
    for keyword in adonet::TABLE {
        writeln!(out, "| `{}` | {} |", keyword.name, cell(&keyword.how.to_string())).unwrap();
    }
    let settings: Vec<String> = foreign::SETTINGS.iter().map(|name| format!("`{name}`")).collect();
    writeln!(
        out,
        "\nSettings of the server's that may stand as parameters, and go into `options`: {}.",
        settings.join(", ")
    )
    .unwrap();
    out
}

fn failures() -> String {
    let mut out = String::from("| word | what it says |\n| --- | --- |\n");
    for failure in pq::ConnectFailure::ALL {
        writeln!(out, "| `{}` | {} |", failure.word(), cell(failure.text())).unwrap();
    }
    out
}

/// Puts `text` between the marks of this name.
fn put(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin: {name} -->\n"), format!("<!-- end: {name} -->"));
    let from = page.find(&begin).unwrap_or_else(|| panic!("docs/dsn.md has no mark {begin}")) + begin.len();
    let to = page.find(&end).unwrap();
    format!("{}{text}{}", &page[..from], &page[to..])
}

#[test]
fn the_page_says_what_the_code_does() {
    // That of this run: what was compiled may be shared with another clone.
    let path = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("docs/dsn.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let parts = [
        ("forms", forms()),
        ("drivers", drivers()),
        ("codes", codes()),
        ("parameters", parameters()),
        ("failures", failures()),
    ];
    let written = parts.iter().fold(page.clone(), |page, (name, text)| put(&page, name, text));
    if std::env::var_os("SLOWLANE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &written).unwrap();
        return;
    }
    assert!(page == written, "docs/dsn.md is out of date: SLOWLANE_WRITE_DOCS=1 cargo test dsn_docs writes it anew");
}
