//! Values are those of psql's \copy with the same options, whatever delimits, quotes and escapes them.

use std::fs;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{CSV, app_with, counts, error, import, imports, job_of, upload_as};
use crate::support::app::TestApp;

/// The options of one file. `None` is what is left out.
#[derive(Clone, Debug)]
struct Options {
    delimiter: Option<&'static str>,
    quote: Option<&'static str>,
    escape: Option<&'static str>,
    null: Option<&'static str>,
    header: bool,
    line_end: &'static str,
}

impl Options {
    fn random(random: &mut StdRng) -> Options {
        fn one(random: &mut StdRng, of: &[&'static str]) -> Option<&'static str> {
            random.random_bool(0.7).then(|| of[random.random_range(0..of.len())])
        }
        loop {
            let options = Options {
                delimiter: one(random, &[",", ";", "\t", "|", "\"", "a"]),
                quote: one(random, &["\"", "'", "~", "\u{8}", "\t", "b", ""]),
                escape: one(random, &["\\", "!", "\"", "'", ",", "a", "."]),
                null: one(random, &["", "NA", "\\N", " ", "a"]),
                header: random.random_bool(0.5),
                line_end: ["\n", "\r\n", "\r"][random.random_range(0..3)],
            };
            let (delimiter, quote) = (options.delimiter(), options.quote());
            let null = options.null.unwrap_or_default();
            let unfit = delimiter == quote
                || null.contains(delimiter)
                || (quote.is_empty() && options.escape.is_some())
                || (!quote.is_empty() && null.contains(quote));
            if !unfit {
                return options;
            }
        }
    }

    fn delimiter(&self) -> &'static str {
        self.delimiter.unwrap_or(",")
    }

    fn quote(&self) -> &'static str {
        self.quote.unwrap_or("\"")
    }

    fn escape(&self) -> &'static str {
        self.escape.unwrap_or(self.quote())
    }

    fn args(&self) -> Value {
        let mut args = json!({"table": "t", "columns": ["a", "b", "c"], "header": self.header});
        let given =
            [("delimiter", self.delimiter), ("quote", self.quote), ("escape", self.escape), ("null", self.null)];
        for (name, value) in given {
            if let Some(value) = value {
                args[name] = json!(value);
            }
        }
        args
    }

    fn psql(&self) -> String {
        let text = |text: &str| format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        // psql's users name a quote that is in no file.
        let quote = if self.quote() == "" { "\u{7f}" } else { self.quote() };
        let escape = if self.quote() == "" { quote } else { self.escape() };
        format!(
            "FORMAT csv, HEADER {}, DELIMITER {}, QUOTE {}, ESCAPE {}, NULL {}",
            self.header,
            text(self.delimiter()),
            text(quote),
            text(escape),
            text(self.null.unwrap_or_default())
        )
    }

    /// A value as files have it, now and then with something that is out of place.
    fn value(&self, random: &mut StdRng) -> String {
        let (quote, escape) = (self.quote(), self.escape());
        let letters = ["x", "é", " ", "1", "\\", "\"", "'", "!", "NA", "\\N", ","];
        let letter = |random: &mut StdRng| letters[random.random_range(0..letters.len())];
        let length = random.random_range(0..4);
        let plain = |random: &mut StdRng| -> String {
            let text: String = (0..length).map(|_| letter(random)).collect();
            text.chars().filter(|c| !self.delimiter().contains(*c) && !quote.contains(*c)).collect()
        };
        if quote.is_empty() || random.random_bool(0.5) {
            return if random.random_bool(0.2) { self.null.unwrap_or_default().to_owned() } else { plain(random) };
        }
        let mut quoted = if random.random_bool(0.1) { plain(random) } else { String::new() };
        quoted += quote;
        for _ in 0..length {
            match random.random_range(0..6) {
                0 => quoted += self.line_end,
                1 => quoted += self.delimiter(),
                2 => quoted.extend([escape, quote]),
                3 => quoted.extend([escape, escape]),
                _ => quoted += &plain(random),
            }
        }
        quoted += quote;
        quoted + &if random.random_bool(0.1) { plain(random) } else { String::new() }
    }

    fn file(&self, random: &mut StdRng) -> String {
        let mut file = if self.header { format!("x{}", self.line_end) } else { String::new() };
        for _ in 0..random.random_range(1..5) {
            let mut values: Vec<String> = (0..3).map(|_| self.value(random)).collect();
            if random.random_bool(0.03) {
                values.push(self.value(random));
            }
            file += &values.join(self.delimiter());
            if random.random_bool(0.03) {
                file += self.quote();
            }
            file += self.line_end;
        }
        if random.random_bool(0.2) {
            file.truncate(file.len() - self.line_end.len());
        }
        file
    }
}

/// What psql makes of a file; `None` when it refuses it.
fn psql(app: &TestApp, file: &str, options: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.csv");
    fs::write(&path, file).unwrap();
    let mut command = app.target.program("psql", &app.target.dsn);
    let copy = format!("\\copy t (a, b, c) FROM '{}' WITH ({options})", path.display());
    let output = command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", &copy]).output().unwrap();
    output.status.success().then(|| stored(app))
}

fn stored(app: &TestApp) -> String {
    let rows = app.target.text(
        "SELECT coalesce(string_agg(format('%s|%s|%s', coalesce(quote_literal(a), 'NULL'), coalesce(quote_literal(b), 'NULL'),
             coalesce(quote_literal(c), 'NULL')), chr(10) ORDER BY id), '') FROM t",
    );
    app.target.run("TRUNCATE public.t RESTART IDENTITY");
    rows
}

#[test]
fn random_files_are_read_as_psql_reads_them() {
    let app = app_with("CREATE TABLE public.t (id serial, a text, b text, c text)");
    let mut random = StdRng::seed_from_u64(20_261_130);
    let (mut same, mut refused) = (0, 0);
    for _ in 0..120 {
        let options = Options::random(&mut random);
        let file = options.file(&mut random);
        let expected = psql(&app, &file, &options.psql());
        let upload = upload_as(&app, CSV, "identity", file.as_bytes());
        let job = app.ended(&job_of(&app, &upload, CSV, &options.args()));
        match (job["state"] == "succeeded", expected) {
            (true, Some(expected)) => {
                assert_eq!(stored(&app), expected, "{file:?} {options:?}");
                same += 1;
            }
            (false, None) => refused += 1,
            // Quotes around a part of a value that has line ends.
            (false, Some(expected)) if error(&job).2.contains("quotes within values make one row of the lines") => {
                assert!(options.line_end.chars().any(|end| expected.contains(end)), "{file:?} {options:?}: {job}");
                refused += 1;
            }
            (_, expected) => panic!("{file:?} {options:?}: psql has {expected:?}, and here is {job}"),
        }
        app.target.run("TRUNCATE public.t RESTART IDENTITY");
    }
    assert!(same > 50 && refused > 10, "{same} were the same, {refused} refused: the files are of no use");
}

#[test]
fn quotes_and_escapes_of_other_programs_are_named() {
    let app = app_with("CREATE TABLE public.t (id int, v int, name text)");
    for (file, args) in [
        ("id\tv\tname\n1\t2\t5\" x 3\" board\n", json!({"table": "t", "delimiter": "\t", "quote": "\u{8}"})),
        ("id\tv\tname\n1\t2\t5\" x 3\" board\n", json!({"table": "t", "delimiter": "\t", "quote": ""})),
        ("'id'|'v'|'name'\n1|2|'5\" x 3\" board'\n", json!({"table": "t", "delimiter": "|", "quote": "'"})),
        ("id,v,name\n1,2,\"5\\\" x 3\\\" board\"\n", json!({"table": "t", "escape": "\\"})),
    ] {
        assert_eq!(imports(&app, CSV, file, &args), counts(1, 1, 0, 0, 0));
        assert_eq!(app.target.text("SELECT t FROM public.t"), "(1,2,\"5\"\" x 3\"\" board\")", "{args}");
        app.target.run("TRUNCATE public.t");
    }
    // Where nothing is quoted, every byte is one of a value: line ends end rows, and no byte is taken for a quote.
    let file = "1,2,\"a\n2,\\N,\\.\n3,,\u{1}\u{2}\u{1}\n";
    let args = json!({"table": "t", "quote": "", "null": "\\N", "header": false, "reject_limit": 1});
    assert_eq!(imports(&app, CSV, file, &args), counts(3, 2, 0, 0, 1));
    assert_eq!(app.target.text("SELECT string_agg(name, '|' ORDER BY id) FROM t"), "\"a|\\.");
    app.target.run("TRUNCATE public.t");
    // The end mark of COPY is a value, whatever escapes.
    let args = json!({"table": "t", "columns": ["name"], "header": false, "escape": "."});
    assert_eq!(imports(&app, CSV, "\\.\nx\n", &args), counts(2, 2, 0, 0, 0));
    assert_eq!(app.target.text("SELECT string_agg(name, '|' ORDER BY name) FROM t"), "\\.|x");
    app.target.run("TRUNCATE public.t");
    let file = "1\u{1}\u{1}\u{2}\u{1}\n";
    let args =
        json!({"table": "t", "quote": "", "delimiter": "\u{1}", "columns": ["id", "v", "name"], "header": false});
    let job = import(&app, CSV, file, &args);
    assert_eq!(error(&job).1, "22P04", "{job}");
    assert_eq!(imports(&app, CSV, "1\u{1}\u{1}\u{2}\n\u{1}\u{1}\\.\n", &args), counts(2, 2, 0, 0, 0));
    assert_eq!(app.target.text("SELECT string_agg(name, '|' ORDER BY id) FROM t"), "\u{2}|\\.");
}

#[test]
fn marks_that_can_not_be_told_apart_are_refused() {
    let app = app_with("CREATE TABLE public.t (a text)");
    let upload = upload_as(&app, CSV, "identity", b"a\n");
    for (args, pointers) in [
        (json!({"quote": "''"}), &["/quote"][..]),
        (json!({"quote": "é"}), &["/quote"]),
        (json!({"quote": "\\"}), &["/quote"]),
        (json!({"quote": "."}), &["/quote"]),
        (json!({"quote": "\n"}), &["/quote"]),
        (json!({"quote": ","}), &["/delimiter"]),
        (json!({"delimiter": "\""}), &["/delimiter"]),
        (json!({"quote": "'", "null": "'"}), &["/null"]),
        (json!({"quote": "", "escape": "\\"}), &["/escape"]),
        (json!({"escape": ""}), &["/escape"]),
        (json!({"escape": "\r"}), &["/escape"]),
        (json!({"format": "ndjson", "quote": "'", "escape": "'"}), &["/quote", "/escape"]),
    ] {
        let mut all = json!({"upload": upload, "table": "t", "format": "csv"});
        all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
        let (status, code, found) = app.post("/v1/jobs", &json!({"kind": "import", "args": all})).problem();
        assert_eq!((status, code.as_str()), (422, "invalid_args"), "{args}");
        assert_eq!(found, pointers.iter().map(|pointer| format!("/args{pointer}")).collect::<Vec<_>>(), "{args}");
    }
    // Another quote leaves the usual one free.
    let args = json!({"table": "t", "delimiter": "\"", "quote": "'", "null": ","});
    assert_eq!(imports(&app, CSV, "a\n,\n", &args), counts(1, 1, 0, 0, 0));
    assert_eq!(app.target.count("SELECT count(*) FROM t WHERE a IS NULL"), 1);
}

#[test]
fn force_null_and_force_not_null_go_by_the_quote_of_the_file() {
    let app = app_with("CREATE TABLE public.t (id int PRIMARY KEY, a text, b text, c text)");
    for (quote, row) in [
        (json!("'"), "1,'NA',NA,\"NA\""),
        (json!(null), "1,\"NA\",NA,'NA'"),
        (json!(""), "1,NA,NA,\"NA\""),
        (json!("\u{8}"), "1,\u{8}NA\u{8},NA,\"NA\""),
    ] {
        for conflict in ["error", "update"] {
            app.target.run("TRUNCATE public.t");
            let args = json!({"table": "t", "null": "NA", "quote": quote, "on_conflict": conflict,
                              "force_null": ["a", "c"], "force_not_null": ["b"]});
            assert_eq!(imports(&app, CSV, &format!("id,a,b,c\n{row}\n"), &args), counts(1, 1, 0, 0, 0));
            let expected = format!("t NA {}", row.rsplit(',').next().unwrap());
            assert_eq!(app.target.text("SELECT concat_ws(' ', a IS NULL, b, c) FROM public.t"), expected);
        }
    }
    let args = json!({"table": "t", "force_null": ["B", "zz"]});
    let job = import(&app, CSV, "id,b\n1,x\n", &args);
    assert_eq!(error(&job).0, "unknown_columns", "{job}");
    assert!(
        error(&job).2.contains("force_null names columns that aren't imported: B (capital and small letters"),
        "{job}"
    );
}
