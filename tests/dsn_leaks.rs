//! P8 for connection strings: passwords with every mark in every place, whole and cut off, and no piece of one is
//! shown.

use std::io::Write;
use std::process::Stdio;

use rand::RngExt;
use serde_json::json;
use slowlane::dsn::{self, Reading, dialects, refusal};
use slowlane::pq;

use crate::dsn::word;
use crate::support::child::program;

/// Letters that stand in no connection string of these tests, and in none of our texts in a row.
const ALPHABET: [char; 8] = ['Q', 'X', 'Z', 'J', '\u{416}', '\u{429}', '7', '9'];
/// Marks with which a password breaks a string, or seems to end.
const MARKS: [&str; 22] = [
    "@", "/", ":", "?", "#", "&", "=", "%", "+", " ", "'", "\"", "\\", ";", ",", "[", "]", "|", "%zz", "$", "\n",
    "\u{200b}",
];
/// Places where a password stands, rightly or wrongly, `S` being the password and `|` any mark between.
const PLACES: [&str; 70] = [
    "postgresql://u:S@h/d",
    "postgres://u:S@h:5432/d?sslmode=require",
    "postgresql+asyncpg://u:S@h/d",
    "POSTGRESQL://u:S@h/d",
    "PostgreSQL+AsyncPG://u:S@h/d",
    "postgresql+nope://u:S@h/d",
    "mysql://u:S@h/d",
    "asyncpg://u:S@h/d",
    "nope://u:S@h/d",
    "postgresql:u:S@h/d",
    "postgresql:/u:S@h/d",
    "u:S@h/d",
    "//u:S@h/d",
    "postgresql://u:S",
    "postgresql://u:S@",
    "postgresql://:S@h/d",
    "postgresql://u:S@h:x/d",
    "postgresql://u:S@[::1/d",
    "postgresql://u:S@h/d?nope=1",
    "postgresql://u:S@h/d?sslmode=nope",
    "postgresql://h/d?user=u&password=S",
    "postgresql://h/d?password=S&sslmode=require",
    "postgresql://h/d?password=S",
    "postgresql://h/d?user=u|password=S",
    "postgresql://h/d|password=S",
    "postgresql://h/d?sslpassword=S",
    "postgresql://h/d?passwd=S",
    "postgresql://h/d?scram_client_key=S",
    "postgresql://h/d?password=S&password=S",
    "jdbc:postgresql://h/d?user=u&password=S",
    "jdbc:postgresql://u:S@h/d",
    "jdbc:postgresql:u:S@h",
    "jdbc:mysql://u:S@h/d",
    "jdbc:postgresql://h/d|user=u|password=S",
    "host=h user=u password=S",
    "host=h password=S user=u",
    "host=h password='S' user=u",
    "host=h password='S",
    "password=S|host=h",
    "host=h|password=S",
    "host=h user=u|password=S",
    "host=h user=u password:S",
    "dbname=postgresql://u:S@h/d",
    "pgsql:host=h;user=u;password=S",
    "Host=h;Username=u;Password=S",
    "Server=h;Pwd=S;Database=d",
    "psql postgresql://u:S@h/d",
    "DATABASE_URL=postgresql://u:S@h/d",
    "export X='postgresql://u:S@h/d",
    "\"postgresql://u:S@h/d",
    "postgresql://u|S@h/d",
    "postgresql://u:S@h/d?options=-c nope",
    "host=//u:S@h/d",
    "postgresql://?host=//u:S@h/d",
    "host=u:S",
    "hostaddr=u:S@h",
    "service=u:S@h",
    "host=h application_name=a;pass=S",
    "host=h application_name=x|password=S",
    "Host=h;Username=u;Password=\"S\"",
    "Host=h;Username=u;Password='S;Database=d",
    "host=h;username=u;pwd=S;SSL Mode=Require",
    "Password=S;Host=h;Username=u",
    "Host=h;Username=u|Password=S;Search Path=x",
    "ecto://u:S@h/d?pool_size=1",
    "postgres://u:S@/cloudsql/p:r:i/d",
    "postgres://u:p@/cloudsql/S/d",
    "postgres://u:p@h/d?options[S]=x",
    "postgres://u:p@h/d?pool_max_conns=1&S=x",
    "postgres://u:p@h/d?application_name=a S",
];
/// A secret in each way in which people write a connection string, `S` being the secret.
const FORMS: [&str; 8] = [
    "postgresql://u:S@h/d",
    "host=h user=u password=S",
    "Host=h;Username=u;Password=S",
    "pgsql:host=h;user=u;password=S",
    "u:S@h/d",
    "jdbc:postgresql://h/d?user=u&password=S",
    "password=S",
    "mysql://u:S@h/d",
];
const SECRET: &str = "QXZJ7979hunter2";

/// A string with a password somewhere.
struct Broken {
    text: String,
    secret: String,
    /// The `@` that ended a password was cut off.
    cut: bool,
}

fn broken(random: &mut rand::rngs::StdRng) -> Broken {
    let mut piece = |least: usize| -> String {
        let length = random.random_range(least..least + 6);
        (0..length).map(|_| ALPHABET[random.random_range(0..ALPHABET.len())]).collect()
    };
    let (first, second) = (piece(4), piece(4));
    let mark = |random: &mut rand::rngs::StdRng| MARKS[random.random_range(0..MARKS.len())];
    let secret = match random.random_range(0..3) {
        0 => first,
        1 => format!("{first}{}{second}", mark(random)),
        _ => format!("{}{first}{}{second}{}", mark(random), mark(random), mark(random)),
    };
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let written = match random.random_range(0..5) {
        0 => encoded(&secret),
        1 => encoded(&secret).to_lowercase(),
        2 => encoded(&encoded(&secret)),
        _ => secret.clone(),
    };
    let place = PLACES[random.random_range(0..PLACES.len())].replace('|', mark(random));
    let mut text = place.replace('S', "\u{0}").replace('\u{0}', &written);
    let mut cut = false;
    if random.random_range(0..8) == 0 {
        // Cut off anywhere.
        let end = random.random_range(0..=text.chars().count());
        cut = place.contains("S@") || place.contains("@h");
        text = text.chars().take(end).collect();
    }
    // Without an end of its own: whatever `@` is in it, ends it.
    cut |= place == "postgresql://u:S";
    Broken { text, secret, cut }
}

/// No four characters of the secret in a row, and no three bytes of it encoded.
#[track_caller]
fn clean(shown: &str, Broken { text, secret, .. }: &Broken) {
    let ours = |c: &char| ALPHABET.contains(c);
    let chars: Vec<char> = secret.chars().collect();
    for four in chars.windows(4).filter(|four| four.iter().filter(|c| ours(c)).count() >= 3) {
        let four: String = four.iter().collect();
        assert!(!shown.contains(&four), "{four} of {secret} in {text} is shown: {shown}");
    }
    let bytes = secret.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>();
    let upper = shown.to_uppercase();
    for three in bytes.windows(3) {
        assert!(!upper.contains(&three.concat()), "{secret} in {text} is shown encoded: {shown}");
    }
}

#[test]
fn no_piece_of_a_password_is_ever_shown() {
    use rand::SeedableRng;
    let mut random = rand::rngs::StdRng::seed_from_u64(20_261_125);
    let mut outcomes = [0_u32; 3];
    for _ in 0..60_000 {
        let broken = broken(&mut random);
        let outcome = dsn::read(&broken.text, pq::parameters());
        let mut shown = format!("{outcome:?}");
        match &outcome {
            Ok(Reading { dsn, changes, driver }) => {
                shown += &format!(
                    "{dsn} {dsn:?} {} {:?} {} {changes:?} {driver}",
                    dsn.masked_conninfo(),
                    dsn.conninfo(),
                    dsn.to_url()
                );
                shown += &format!("{:?}", dialects::all(dsn, false));
            }
            Err(error) => shown += &error.to_string(),
        }
        outcomes[["accept", "translate", "refuse"].iter().position(|w| *w == word(&outcome)).unwrap()] += 1;
        // Without the `@` that ended its password, it is rightly another database's string, if it is one.
        let is_one = outcome.as_ref().map_or_else(|error| error.right != refusal::TEMPLATE, |_| true);
        if !(broken.cut && is_one) {
            clean(&shown, &broken);
        }
    }
    assert!(outcomes.iter().all(|count| *count > 1_000), "{outcomes:?}");
}

#[test]
fn the_program_shows_no_piece_of_a_password_either() {
    use rand::SeedableRng;
    let mut random = rand::rngs::StdRng::seed_from_u64(4_711);
    let broken: Vec<Broken> = (0..2_000).map(|_| broken(&mut random)).collect();
    let lines: String = broken.iter().map(|broken| json!(broken.text).to_string() + "\n").collect();
    let mut child = program()
        .args(["dsn", "--lines", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shown.lines().count(), broken.len());
    for (line, broken) in shown.lines().zip(&broken) {
        if !broken.cut || line.contains(refusal::TEMPLATE) {
            clean(line, broken);
        }
    }
    // A setting, with everything logged, and an argument that is none.
    for broken in broken.iter().filter(|broken| !broken.cut).take(25) {
        let (text, secret) = (&broken.text, &broken.secret);
        let serve = program()
            .args(["serve", "--print-config", "--target", "default=T"])
            .env("SLOWLANE_DATABASE_URL", text)
            .env("T", text)
            .env("SLOWLANE_LOG", "trace")
            .output()
            .unwrap();
        let misplaced = program()
            .args(["serve", &format!("--x=postgresql://u:{}@h/d", secret.replace('\0', ""))])
            .output()
            .unwrap();
        // A setting that is none of them, and a string that the shell took apart.
        let setting = |name: &str| program().args(["serve", "--print-config"]).env(name, text).output().unwrap();
        let split = program().arg("dsn").args(["host=h", &format!("pwd={secret}")]).output().unwrap();
        let wrong =
            ["SLOWLANE_LISTEN", "SLOWLANE_WORKERS", "SLOWLANE_CONFIG", "SLOWLANE_LOG", "SLOWLANE_API_TOKEN_FILE"]
                .map(setting);
        for output in [serve, misplaced, split].into_iter().chain(wrong) {
            clean(
                &format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
                broken,
            );
        }
    }
}

/// The subcommands that do something, each with the words that lead to it.
fn leaves(command: &clap::Command, words: &[String], found: &mut Vec<(Vec<String>, clap::Command)>) {
    let subcommands: Vec<&clap::Command> = command.get_subcommands().collect();
    if subcommands.is_empty() {
        found.push((words.to_vec(), command.clone()));
    }
    for subcommand in subcommands {
        let words: Vec<String> = words.iter().cloned().chain([subcommand.get_name().to_owned()]).collect();
        leaves(subcommand, &words, found);
    }
}

/// A value that an argument takes, for those that have to be there.
fn valid(argument: &clap::Arg) -> String {
    let possible = argument.get_possible_values();
    possible.first().map_or("x".to_owned(), |value| value.get_name().to_owned())
}

/// The program where nothing is installed and nothing can be reached, in a folder of its own.
fn nowhere(folder: &std::path::Path) -> std::process::Command {
    let mut command = program();
    command.current_dir(folder).env("HOME", folder).env("SLOWLANE_POSTGRES_BIN", folder).env("SLOWLANE_LOG", "trace");
    command
        .env("SLOWLANE_DATABASE_URL", "postgresql://u@127.0.0.1:1/d")
        .env("SLOWLANE_DEMO_URL", "postgresql://u@127.0.0.1:1/d");
    command.env("T", "postgresql://u@127.0.0.1:1/d").env("SLOWLANE_TARGET", "default=T");
    command
}

#[track_caller]
fn tells_nothing(mut command: std::process::Command) {
    let output = command.output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let told = format!("{command:?}").replace(SECRET, "S") + ": " + &told;
    assert!(!told.contains(SECRET) && !told.contains("hunter2"), "{}", told.replace(SECRET, "<SECRET>"));
}

/// Every argument that there is, and every one that will be.
#[test]
fn no_argument_and_no_variable_repeats_a_connection_string_in_its_place() {
    let mut all = Vec::new();
    leaves(&slowlane::cli::command(), &[], &mut all);
    assert!(all.len() > 10, "{} subcommands", all.len());
    let folder = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for (words, command) in &all {
        let needed: Vec<String> =
            command.get_positionals().filter(|positional| positional.is_required_set()).map(valid).collect();
        let arguments: Vec<&clap::Arg> =
            command.get_arguments().filter(|argument| argument.get_id() != "help").collect();
        // One too many, and a flag that there is not.
        for extra in
            [FORMS[tried % FORMS.len()].replace('S', SECRET), format!("--nope={}", FORMS[0].replace('S', SECRET))]
        {
            let mut run = nowhere(folder.path());
            run.args(words).args(&needed).args(arguments.iter().filter(|a| a.is_positional()).map(|_| "x")).arg(extra);
            tells_nothing(run);
        }
        for argument in arguments {
            tried += 1;
            // A string and its pieces, and in turn each other form.
            for form in [FORMS[0], FORMS[1 + tried % (FORMS.len() - 1)]] {
                let text = form.replace('S', SECRET);
                let given = match argument.get_long() {
                    Some(long) => vec![format!("--{long}={text}")],
                    None => vec![text.clone()],
                };
                let others: Vec<String> = if argument.is_positional() { Vec::new() } else { needed.clone() };
                let mut runs = vec![Vec::new()];
                // What is in effect is shown too.
                if command.get_arguments().any(|known| known.get_id() == "print_config") {
                    runs.push(vec!["--print-config".to_owned()]);
                }
                for more in runs {
                    let mut run = nowhere(folder.path());
                    run.args(words).args(&more).args(&given).args(&others);
                    tells_nothing(run);
                    if let Some(variable) = argument.get_env() {
                        let mut run = nowhere(folder.path());
                        run.args(words).args(&more).args(&needed).env(variable, &text);
                        tells_nothing(run);
                    }
                }
            }
        }
    }
    assert!(tried > 80, "{tried} arguments");
}

#[test]
fn keys_and_certificates_in_the_place_of_their_files_are_not_shown() {
    let pem = "-----BEGIN%20PRIVATE%20KEY-----%0AQXZJ7979hunter2%0A-----END%20PRIVATE%20KEY-----";
    let pem_pair = "-----BEGIN PRIVATE KEY----- QXZJ7979hunter2";
    let der = "QXZJ7979hunter2/".repeat(40);
    for text in [
        format!("postgresql://u:p@h/d?sslinline=true&sslcert={pem}&sslkey={pem}"),
        format!("postgresql://u:p@h/d?sslkey={pem}"),
        format!("postgresql://u:p@h/d?sslrootcert={pem}&sslcrl={pem}"),
        format!("postgresql://u:p@h/d?sslkey={der}"),
        format!("Host=h;Username=u;SSL Key={pem_pair};Root Certificate={pem_pair}"),
        format!("Host=h;Username=u;Nope=1;SSL Key={pem_pair}"),
    ] {
        let outcome = dsn::read(&text, pq::parameters());
        let shown = match &outcome {
            Ok(Reading { dsn, changes, .. }) => {
                format!("{dsn} {dsn:?} {} {changes:?} {:?}", dsn.masked_conninfo(), dialects::all(dsn, false))
            }
            Err(error) => error.to_string(),
        };
        assert!(!shown.contains("hunter2"), "{text}: {shown}");
        if text.contains("sslinline") {
            assert!(shown.contains(refusal::TEMPLATE), "{shown}");
        }
    }
    let path = dsn::read("postgresql://u@h/d?sslkey=/etc/ssl/my-key.pem", pq::parameters()).unwrap().dsn.masked();
    assert!(path.contains("my-key.pem"), "{path}");
}

#[test]
fn a_misspelt_setting_is_told_without_talk_of_connection_strings() {
    let told = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let folder = tempfile::tempdir().unwrap();
    let toml = folder.path().join("slowlane.toml");
    std::fs::write(&toml, "listn = \"127.0.0.1:1\"").unwrap();
    let base = || {
        let mut command = program();
        command.args(["serve", "--print-config", "--target", "default=T"]);
        command.env("SLOWLANE_DATABASE_URL", "postgresql://h/d").env("T", "postgresql://h/d");
        command
    };
    for (mut command, status, words) in [
        (base(), 0, "SLOWLANE_LISTN is no setting of slowlane, and has no effect: is it SLOWLANE_LISTEN?"),
        (base(), 2, "the flag --listn isn't known here: is it --listen?; see --help"),
        (
            base(),
            2,
            "the value of --listen <LISTEN> (or of its variable) can't be used: expected an address and a port, such as",
        ),
        (base(), 1, "unknown key listn: is it listen?"),
        (base(), 0, "SLOWLANE_DATABSE_URL is no setting of slowlane, and has no effect: is it SLOWLANE_DATABASE_URL?"),
        (base(), 1, "log: expected off, error, warn, info, debug or trace"),
        (base(), 2, "the value of --workers <WORKERS> (or of its variable) can't be used: expected a whole number"),
        (base(), 1, "workers: expected 1 to 1000"),
    ] {
        match words {
            _ if words.contains("SLOWLANE_LISTN") => command.env("SLOWLANE_LISTN", "127.0.0.1:1"),
            _ if words.contains("--listn") => command.args(["--listn", "127.0.0.1:1"]),
            _ if words.contains("--listen <") => command.env("SLOWLANE_LISTEN", "8080"),
            _ if words.contains("SLOWLANE_DATABSE_URL") => command.env("SLOWLANE_DATABSE_URL", "postgresql://h/d"),
            _ if words.contains("unknown key") => command.arg("--config").arg(&toml),
            _ if words.starts_with("log:") => command.env("SLOWLANE_LOG", "nope"),
            _ if words.contains("--workers <") => command.env("SLOWLANE_WORKERS", "many"),
            _ => command.env("SLOWLANE_WORKERS", "0"),
        };
        let (got, log) = told(&mut command);
        assert_eq!(got, status, "{words}: {log}");
        assert!(log.contains(words), "{words}: {log}");
        assert!(!log.contains("connection string") && !log.contains("DSN"), "{log}");
    }
    // What is read by another part of the program has an effect.
    let (_, log) = told(base().env("SLOWLANE_POSTGRES_BIN", "/nowhere").env("SLOWLANE_POSTGRES_BON", "/nowhere"));
    assert!(!log.contains("SLOWLANE_POSTGRES_BIN is no setting"), "{log}");
    assert!(log.contains("SLOWLANE_POSTGRES_BON is no setting of slowlane"), "{log}");
    // A string that the shell took apart is told as one.
    let (_, log) = told(program().args(["dsn", "host=h", "password=hunter2"]));
    assert!(log.contains("a connection string is one argument") && !log.contains("hunter2"), "{log}");
}
