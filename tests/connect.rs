//! Connections that can't be opened: each for its reason, in time, in one message that shows no secret. And what is
//! said when a database goes away later.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use slowlane::db::Source;
use slowlane::db::pool::Manager;
use slowlane::db::roles;
use slowlane::dsn::Dsn;
use slowlane::pq::{self, Session};

use crate::support::child::{Server, program};
use crate::support::eventually;
use crate::support::pooler::{Pooler, Pooling, message, read_startup};
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};

/// `connect_timeout`, and what a busy machine needs beside it.
const IN_TIME: Duration = Duration::from_secs(7);

/// A listener that does this with everybody.
fn listener(serve: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(serve));
    port
}

/// A server that lets everybody in and says these parameters, or refuses with this error.
fn server(parameters: &'static [(&'static str, &'static str)], error: Option<&'static [u8]>) -> String {
    listener(move |mut client| {
        let Some(_) = read_startup(&mut client) else { return };
        let mut answer = Vec::new();
        match error {
            Some(fields) => answer.extend(message(b'E', fields)),
            None => {
                answer.extend(message(b'R', &0_u32.to_be_bytes()));
                for (name, value) in parameters {
                    answer.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
                }
                answer.extend(message(b'K', &[1; 8]));
                answer.extend(message(b'Z', b"I"));
            }
        }
        // The client may have gone, and says itself what it got.
        let _ = client.write_all(&answer);
        let _ = client.read_to_end(&mut Vec::new());
    })
}

fn at(port: &str) -> Dsn {
    let text = format!("host=127.0.0.1 port={port} user=u password=hunter2-s3cret dbname=d");
    Dsn::parse(&text, pq::parameters()).unwrap()
}

/// Why each way to connect fails: libpq's, Diesel's with its look at the server first, and Diesel's alone.
#[track_caller]
fn fails(dsn: &Dsn, word: &str) {
    let known = Source::from(&Postgres::shared().work().dsn);
    drop(Manager::work(&known, "SELECT 1").open().unwrap());
    let keywords = ["host", "port", "user", "password", "dbname", "sslmode", "connect_timeout"];
    let given = keywords.iter().filter_map(|keyword| Some((*keyword, dsn.get(keyword)?)));
    let moved = given.fold(known, |source, (keyword, value)| source.with(keyword, value));
    let ways: [&dyn Fn() -> Option<String>; 3] = [
        &|| Session::connect(dsn).err().map(|error| error.to_string()),
        &|| Manager::work(dsn, "SELECT 1").open().err().map(|error| error.to_string()),
        &|| Manager::work(&moved, "SELECT 1").open().err().map(|error| error.to_string()),
    ];
    for (n, way) in ways.iter().enumerate() {
        let began = Instant::now();
        let text = way().unwrap_or_else(|| panic!("way {n} connected, instead of {word}"));
        assert!(began.elapsed() < IN_TIME, "way {n}: {:?}: {text}", began.elapsed());
        assert!(text.contains(&format!("({word}): ")), "way {n}, {word}: {text}");
        assert!(text.contains("could not connect to postgresql://"), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("hunter2") && !text.contains('\n'), "{text}");
    }
}

#[test]
fn listeners_that_are_no_postgres() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    fails(&at(&free), "refused");
    let silent = listener(|client| drop(std::thread::spawn(move || (&client).read_to_end(&mut Vec::new()))));
    let began = Instant::now();
    fails(&at(&silent), "timed_out");
    assert!(began.elapsed() > Duration::from_secs(14), "it was given up too early");
    let web = listener(|mut client| {
        let _ = client.read(&mut [0; 64]);
        let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        let _ = client.read_to_end(&mut Vec::new());
    });
    fails(&at(&web), "not_a_postgres");
    fails(&at(&web).with("sslmode", "disable"), "not_a_postgres");
    let closing = listener(|mut client| drop(client.read(&mut [0; 64])));
    fails(&at(&closing).with("sslmode", "disable"), "closed");
    fails(&at(&free).with("host", "no-such-host.invalid"), "host_not_resolved");
    fails(&at(&free).with("host", "/nowhere"), "refused");
}

#[test]
fn a_server_that_is_too_old_is_refused_by_name() {
    let old = at(&server(&[("server_version", "13.22"), ("client_encoding", "UTF8")], None));
    let text = Manager::work(&old, "SELECT 1").open().err().unwrap().to_string();
    assert!(text.contains("(server_too_old)") && text.contains("Postgres 14"), "{text}");
}

#[test]
fn a_server_that_lets_everybody_in_and_answers_nothing_is_told_in_time() {
    let silent = at(&server(&[("server_version", "17.1"), ("client_encoding", "UTF8")], None));
    let began = Instant::now();
    let text = Manager::work(&silent, "SELECT 1").open().err().unwrap().to_string();
    assert!(text.contains("(timed_out)") && began.elapsed() < IN_TIME, "{:?}: {text}", began.elapsed());
}

#[test]
fn a_refusal_in_another_language_is_understood_by_its_code() {
    for (fields, word) in [
        (
            "SFATAL\0VFATAL\0C28P01\0MPasswort-Authentifizierung f\u{fc}r Benutzer \u{bb}u\u{ab} fehlgeschlagen\0\0",
            "password_wrong",
        ),
        (
            "SFATAL\0VFATAL\0C3D000\0M\u{431}\u{430}\u{437}\u{430} \u{43d}\u{435} \u{441}\u{443}\u{449}\u{435}\u{441}\u{442}\u{432}\u{443}\u{435}\u{442}\0\0",
            "no_such_database",
        ),
        ("SFATAL\0VFATAL\0CXX000\0Minterner Fehler\0\0", "other"),
    ] {
        fails(&at(&server(&[], Some(fields.as_bytes()))).with("sslmode", "disable"), word);
    }
}

#[test]
fn of_several_hosts_each_has_its_time_and_the_most_telling_is_told() {
    let database = Postgres::shared().work();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let real = database.dsn.get("port").unwrap();
    let several = database.dsn.clone().with("host", "127.0.0.1,127.0.0.1").with("port", &format!("{free},{real}"));
    assert!(Session::connect(&several).is_ok());
    fails(&several.clone().with("password", "hunter2"), "password_wrong");
    // One that stays silent costs its own time, and the next one is still reached.
    let silent = listener(|client| drop(std::thread::spawn(move || (&client).read_to_end(&mut Vec::new()))));
    let slow = several.with("port", &format!("{silent},{real}")).with("connect_timeout", "1");
    assert!(Session::connect(&slow).is_ok());
}

/// The cluster's rules of who may come in, the first that fits; then everybody's password.
fn rule(postgres: &Postgres, rules: &str) {
    let path = postgres.cluster.lock().unwrap().folder().join("pgdata/pg_hba.conf");
    let known = [roles::OWNER, roles::QUEUE, roles::DEMO, "postgres", "limited"].join(",");
    // Written in place, so that it stays the server's own file.
    fs::write(path, format!("{rules}\nhost all {known} 127.0.0.1/32 scram-sha-256\n")).unwrap();
    let mut session = Session::connect(&postgres.superuser()).unwrap();
    let mut ask = |sql: &str| session.query(sql, &[]).unwrap().get(0, 0).unwrap().to_owned();
    let before = ask("SELECT pg_conf_load_time()");
    ask("SELECT pg_reload_conf()");
    // The server tells its sessions in the same breath in which it reads the rules itself.
    eventually("the rules are read", || ask("SELECT pg_conf_load_time()") != before);
}

#[test]
fn refusals_of_a_server() {
    let postgres = Postgres::with(&[("max_connections", "12"), ("superuser_reserved_connections", "3")]);
    let database = postgres.work();
    let known = |user: &str| database.dsn.clone().with("user", user).with("password", "hunter2-s3cret");
    rule(&postgres, "host all ghost,locked 127.0.0.1/32 trust");
    database.run("CREATE ROLE locked; CREATE ROLE limited LOGIN PASSWORD 's3cret-limited' CONNECTION LIMIT 0");
    database.run("CREATE DATABASE closed");
    database.run("REVOKE CONNECT ON DATABASE closed FROM public");

    fails(&known("ghost"), "no_such_role");
    fails(&known("locked"), "no_such_role");
    fails(&known("somebody"), "no_pg_hba_entry");
    fails(&known(roles::DEMO), "password_wrong");
    let text = format!(
        "host=127.0.0.1 port={} user={} dbname={} sslmode=disable",
        database.dsn.get("port").unwrap(),
        roles::DEMO,
        database.name()
    );
    let without = Dsn::parse(&text, pq::parameters()).unwrap();
    let error = Session::connect(&without).err().unwrap().to_string();
    assert!(error.contains("(password_missing)"), "{error}");
    fails(&database.dsn.clone().with("dbname", "nowhere"), "no_such_database");
    fails(&database.dsn.clone().with("dbname", "closed"), "no_such_database");
    fails(&known("limited").with("password", "s3cret-limited"), "too_many_connections");

    let mut sessions = Vec::new();
    while let Ok(session) = Session::connect(&database.dsn) {
        sessions.push(session);
    }
    fails(&database.dsn, "too_many_connections");
    let (mut killed, mut stopped) = (sessions.pop().unwrap(), sessions.pop().unwrap());
    drop(sessions);
    let pid = |session: &mut Session| {
        let rows = session.query("SELECT pg_backend_pid()", &[]).unwrap();
        Pid::from_raw(rows.get(0, 0).unwrap().parse().unwrap())
    };

    // A crash: the server waits for one that doesn't end, and recovers after that.
    let stopped_pid = pid(&mut stopped);
    kill(stopped_pid, Signal::SIGSTOP).unwrap();
    kill(pid(&mut killed), Signal::SIGKILL).unwrap();
    eventually("it recovers", || {
        Session::connect(&database.dsn).err().is_some_and(|error| error.to_string().contains("(starting_up)"))
    });
    fails(&database.dsn, "starting_up");
    let mut last = None;
    eventually("it is there again", || {
        last = Session::connect(&database.dsn).ok();
        last.is_some()
    });

    // An orderly end waits for the last session.
    let server = postgres.cluster.lock().unwrap().pid().unwrap();
    kill(Pid::from_raw(i32::try_from(server).unwrap()), Signal::SIGTERM).unwrap();
    eventually("it shuts down", || {
        Session::connect(&database.dsn).err().is_some_and(|error| error.to_string().contains("(shutting_down)"))
    });
    fails(&database.dsn, "shutting_down");
    drop(last);
    eventually("it has ended", || postgres.cluster.lock().unwrap().pid().is_none());
    fails(&database.dsn, "refused");
}

/// A session that carries out what it is told within a transaction, through `dsn`.
fn within_a_transaction(dsn: &Dsn) -> Session {
    let mut session = Session::connect(dsn).unwrap();
    session.execute_batch("BEGIN").unwrap();
    session
}

#[test]
fn a_pooler_that_breaks_sessions_is_refused_and_one_that_keeps_them_is_not() {
    let postgres = Postgres::start();
    let (queue, target) = (postgres.queue(), postgres.work());
    rule(&postgres, &format!("host all {},{} 127.0.0.1/32 trust", roles::QUEUE, roles::DEMO));
    let by = |pooler: &Pooler, database: &Database| Database {
        dsn: pooler.dsn(&database.dsn),
        superuser: database.superuser.clone(),
    };
    for pooling in [Pooling::Transactions, Pooling::RoundRobin] {
        for sessions in 0..4 {
            let pooler = Pooler::before(&queue.dsn, pooling);
            let through = pooler.dsn(&queue.dsn);
            // So many sessions of the server lie there, and are taken up by turns.
            let held: Vec<Session> = (0..sessions).map(|_| within_a_transaction(&through)).collect();
            held.into_iter().for_each(|mut session| session.execute_batch("COMMIT").unwrap());
            let text = Manager::work(&through, "SELECT 1").open().err().map(|error| error.to_string());
            assert!(text.as_ref().is_some_and(|text| text.contains("(pooler)")), "{sessions} sessions: {text:?}");
        }
    }
    // Whoever serves says so, of the queue and of the target.
    let (of_queue, of_target) =
        (Pooler::before(&queue.dsn, Pooling::Transactions), Pooler::before(&target.dsn, Pooling::Transactions));
    for (queue, target) in [(by(&of_queue, &queue), target.clone()), (queue.clone(), by(&of_target, &target))] {
        let mut serve = program();
        serve.args(["serve", "--listen", "127.0.0.1:0", "--target", "default=TARGET_URL"]);
        serve.env("SLOWLANE_DATABASE_URL", queue.dsn.to_url().expose());
        serve.env("TARGET_URL", target.dsn.to_url().expose());
        let output = serve.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains("(pooler)") && !text.contains("s3cret"), "{text}");
        assert!(text.contains("session mode"), "{text}");
    }
    let (of_queue, of_target) =
        (Pooler::before(&queue.dsn, Pooling::Sessions), Pooler::before(&target.dsn, Pooling::Sessions));
    let server = Server::serve(&by(&of_queue, &queue), &by(&of_target, &target), &[]);
    assert_eq!(server.client.query("SELECT 1", &json!([]))["state"], "succeeded");
}

#[test]
fn the_program_says_once_and_in_time_why_it_cannot_start() {
    let silent = listener(|client| drop(std::thread::spawn(move || (&client).read_to_end(&mut Vec::new()))));
    let dsn = at(&silent);
    let serve = ["serve", "--no-workers", "--listen", "127.0.0.1:0", "--target", "default=TARGET_URL"];
    for arguments in [&["migrate", "status"][..], &serve] {
        let began = Instant::now();
        let mut command = program();
        command.args(arguments).env("SLOWLANE_DATABASE_URL", dsn.to_url().expose());
        command.env("SLOWLANE_WAIT_FOR_QUEUE", "0s");
        let output = command.output().unwrap();
        let took = began.elapsed();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && took < IN_TIME, "{took:?}: {text}");
        assert_eq!(text.matches("could not connect").count(), 1, "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("(timed_out)") && !text.contains("hunter2"), "{text}");
    }
}

/// A warning without its time and its reason.
fn what_was_said(line: &str) -> Option<&str> {
    line.contains(" WARN ").then(|| line.split_once("] ")?.1.split(": ").next()).flatten()
}

#[test]
fn a_loss_is_logged_once_and_so_is_the_return() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let proxies = [Proxy::before(&queue.dsn), Proxy::before(&target.dsn)];
    let through = |proxy: &Proxy, database: &Database| Database {
        dsn: proxy.dsn(&database.dsn),
        superuser: database.superuser.clone(),
    };
    let server = Server::serve(&through(&proxies[0], &queue), &through(&proxies[1], &target), &[]);
    assert_eq!(server.client.query("SELECT 1", &json!([]))["state"], "succeeded");
    let (lost, back) = ("a database can't be reached any more", "a database can be reached again");
    for (n, proxy) in proxies.iter().enumerate().rev() {
        let count = |words: &str| server.log().lines().filter(|line| line.contains(words)).count();
        let before = (count(lost), count(back));
        proxy.set(Mode::Refuse);
        proxy.cut();
        let job = json!({"kind": "query", "args": {"sql": "SELECT 1"}});
        let mut ids = Vec::new();
        eventually("the loss is noticed", || {
            if n == 1 {
                ids.push(server.client.submit(&job));
            }
            server.client.get("/v1/jobs");
            count(lost) > before.0
        });
        let (tries, since) = (proxy.accepted(), Instant::now());
        eventually("it was tried again and again", || {
            server.client.get("/v1/jobs");
            proxy.accepted() > tries + 8 || (n == 1 && since.elapsed() > Duration::from_secs(12))
        });
        proxy.set(Mode::Pass);
        eventually("the return is noticed", || {
            if n == 1 {
                queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
            }
            server.client.get("/v1/jobs");
            count(back) > before.1
        });
        eventually("it serves again", || server.client.get("/readyz").status == 200);
        for id in ids {
            eventually("the job runs", || {
                queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
                server.client.job(&id)["state"] == "succeeded"
            });
        }
        assert_eq!((count(lost), count(back)), (before.0 + 1, before.1 + 1), "{}", server.log());
    }
    // Each part of the process says once what it means for it, at most twice when it met a dead connection afterwards.
    let log = server.log();
    let heads: Vec<&str> = log.lines().filter_map(what_was_said).collect();
    for head in &heads {
        let count = heads.iter().filter(|other| *other == head).count();
        assert!(count <= 2, "{count} times {head}: {log}");
    }
    assert_eq!(heads.iter().filter(|head| head.contains("a request failed")).count(), 1, "{log}");
    assert!(!log.contains("connecting fails") && !log.contains("s3cret"), "{log}");
}
