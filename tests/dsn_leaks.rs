//! P8 for connection strings: passwords with every mark in every place, whole and cut off, and no piece of one is shown.

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
const PLACES: [&str; 59] = [
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
];

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
