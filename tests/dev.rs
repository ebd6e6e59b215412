//! `slowlane dev`: a private Postgres with demo data, taken over after a kill, used by one at a time, gone at the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;
use slowlane::dsn::Dsn;
use slowlane::pq::{self, Session};

use crate::support::child::{Running, Server, program};
use crate::support::eventually;

/// A folder that the server's own user can reach.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("slowlane-dev-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn dev(folder: &Path) -> Command {
    let mut command = program();
    command.args(["dev", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.join("dev"));
    command
}

fn postmaster(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("dev/pgdata/postmaster.pid")).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn runs(pid: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !pid.is_empty() && !state.is_empty() && !state.contains(") Z ")
}

#[test]
fn it_serves_the_demo_and_survives_its_own_death() {
    let folder = folder();
    let mut first = Server::spawn(dev(folder.path()));
    let sql = "SELECT carrier, month, avg(arr_delay) FROM flights GROUP BY 1,2 ORDER BY 1,2";
    let job = first.client.query(sql, &json!([]));
    assert_eq!((&job["state"], &job["result"]["rows"]), (&json!("succeeded"), &json!(185)));
    let counts = "SELECT (SELECT count(*) FROM airlines)::text || ' ' || (SELECT count(*) FROM airports) || ' ' || (SELECT count(*) FROM planes)
                      || ' ' || (SELECT count(*) FROM weather) || ' ' || (SELECT count(*) FROM flights) || ' ' || (SELECT count(*) FROM flights WHERE dep_time IS NULL)";
    let job = first.client.query(counts, &json!([]));
    let data = first.client.get(&format!("/v1/jobs/{}/result/data?format=ndjson", job["id"].as_str().unwrap()));
    assert!(data.text().contains("16 1458 3322 26115 336776 8255"), "{}", data.text());
    let report = first.client.submit(&json!({"kind": "carrier_report", "args": {"month": 1}}));
    assert_eq!(first.client.ended(&report)["state"], "succeeded");
    the_addresses_work(folder.path());
    // A second one on the same folder says so and stops.
    let second = dev(folder.path()).output().unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && text.contains(&format!("process {}", first.pid())), "{text}");
    assert_eq!(first.client.get("/readyz").status, 200);
    // Killed, its Postgres goes on; the next start takes it over, and the data are there.
    let old = postmaster(folder.path());
    first.signal(Signal::SIGKILL);
    first.wait();
    assert!(runs(&old));
    let mut next = Server::spawn(dev(folder.path()));
    let new = postmaster(folder.path());
    assert!(new != old && !runs(&old));
    assert_eq!(next.client.ended(&report)["state"], "succeeded");
    assert!(!next.log().contains("loaded the demo's data"), "loaded twice");
    // Its Postgres is started again when it dies.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(new.parse().unwrap()), Signal::SIGQUIT).unwrap();
    eventually("another Postgres runs", || {
        let pid = postmaster(folder.path());
        pid != new && runs(&pid) && next.client.get("/readyz").status == 200
    });
    let last = postmaster(folder.path());
    next.signal(Signal::SIGINT);
    assert!(next.wait().success(), "{}", next.log());
    assert!(!runs(&last), "the cluster outlived its process");
}

/// `urls.env` can be read by its owner only, and its roles can do what they are for and no more.
fn the_addresses_work(folder: &Path) {
    let path = folder.join("dev/urls.env");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for entry in fs::read_dir(folder.join("dev")).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "password") {
            assert_eq!(fs::metadata(&entry).unwrap().permissions().mode() & 0o777, 0o600, "{}", entry.display());
        }
    }
    let text = fs::read_to_string(path).unwrap();
    let session = |name: &str| {
        let url = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
        Session::connect(&Dsn::parse(url, pq::parameters()).unwrap()).unwrap()
    };
    let mut queue = session("SLOWLANE_DATABASE_URL");
    assert_eq!(queue.query("SELECT count(*) > 0 FROM slowlane.finished_jobs", &[]).unwrap().get(0, 0), Some("t"));
    assert_eq!(queue.query("DROP TABLE slowlane.jobs", &[]).err().unwrap().sqlstate.as_deref(), Some("42501"));
    let mut demo = session("SLOWLANE_DEMO_URL");
    let rights = "SELECT rolsuper::text || pg_has_role(oid, 'pg_signal_backend', 'MEMBER')::text || pg_has_role(oid, 'pg_read_server_files', 'MEMBER')::text FROM pg_roles WHERE rolname = current_user";
    assert_eq!(demo.query(rights, &[]).unwrap().get(0, 0), Some("falsefalsefalse"));
    demo.execute_batch("CREATE TABLE mine (a int); DROP TABLE mine").unwrap();
}

#[test]
fn a_folder_of_somebody_elses_is_left_alone() {
    let folder = folder();
    let dev = folder.path().join("dev");
    for stranger in ["notes.txt", "pgdata"] {
        fs::create_dir_all(dev.join(stranger)).unwrap();
        fs::set_permissions(&dev, fs::Permissions::from_mode(0o750)).unwrap();
        let output = self::dev(folder.path()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains("aren't slowlane's"), "{text}");
        assert_eq!(fs::metadata(&dev).unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(fs::read_dir(&dev).unwrap().count(), 1);
        fs::remove_dir(dev.join(stranger)).unwrap();
    }
}

#[test]
fn a_taken_port_is_told_before_anything_is_made() {
    let folder = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output =
        program().args(["dev", "--listen", &address, "--data-dir"]).arg(folder.path().join("dev")).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains(&address) && text.contains("--listen"), "{text}");
    assert!(!folder.path().join("dev").exists());
}

#[test]
fn a_chosen_server_that_is_none_is_told_and_no_other_one_is_taken() {
    let folder = folder();
    let chosen = folder.path().join("empty");
    fs::create_dir(&chosen).unwrap();
    let output = dev(folder.path()).env("SLOWLANE_POSTGRES_BIN", &chosen).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("SLOWLANE_POSTGRES_BIN") && text.contains(chosen.to_str().unwrap()), "{text}");
    assert_eq!(postmaster(folder.path()), "");
}

#[test]
fn the_server_is_the_one_that_was_chosen() {
    let folder = folder();
    let installed = slowlane::cluster::find_binaries().unwrap();
    let chosen = folder.path().join("chosen");
    fs::create_dir(&chosen).unwrap();
    // By links: a server finds its own folder behind them.
    for program in ["postgres", "initdb", "pg_ctl"] {
        std::os::unix::fs::symlink(installed.path(program), chosen.join(program)).unwrap();
    }
    let running = Running::start(dev(folder.path()).env("SLOWLANE_POSTGRES_BIN", &chosen));
    eventually("its Postgres runs", || runs(&postmaster(folder.path())));
    let command = fs::read_to_string(format!("/proc/{}/cmdline", postmaster(folder.path()))).unwrap();
    assert!(command.starts_with(chosen.to_str().unwrap()), "{command}: {}", running.stderr());
}
