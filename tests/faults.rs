//! Bad days, with real processes and real faults. After each of them the history is read: every accepted job ended in
//! exactly one way.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slowlane::cluster::StopMode;

use crate::support::child::Server;
use crate::support::client::Client;
use crate::support::load::{Load, Servers};
use crate::support::postgres::{Database, Postgres};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{eventually, history};

const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";

fn query(sql: &str) -> Value {
    json!({"kind": "query", "args": {"sql": sql}})
}

/// What a process runs, as the rows say.
fn held_by(queue: &Database, worker: &Server) -> i64 {
    queue.count(&format!(
        "SELECT count(*) FROM jobs j JOIN workers w ON w.id = j.worker_id WHERE w.pid = {} AND j.backend_pid IS NOT NULL",
        worker.pid()
    ))
}

/// Declares a process dead, as a janitor does when it hasn't beaten for long.
fn bury(queue: &Database, worker: &Server) {
    queue.run(&format!("DELETE FROM workers WHERE pid = {}", worker.pid()));
}

/// The job, once it has ended: for as long as it takes others to be declared dead, and it to run.
#[track_caller]
fn ended_within(client: &Client, id: &str, patience: Duration) -> Value {
    let until = Instant::now() + patience;
    loop {
        let job = client.get_with(&format!("/v1/jobs/{id}"), &[("prefer", "wait=5")]).json();
        if job["finished_at"].is_string() {
            return job;
        }
        assert!(Instant::now() < until, "not in time: {job}");
    }
}

#[test]
fn a_killed_workers_jobs_run_again_in_another_and_its_sessions_end_first() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let mut doomed = Server::worker(&queue, &target, &["--workers", "4"]);
    // Each says whether the session of its earlier attempt still holds its lock, and sleeps as long as a table says.
    target.run("CREATE TABLE public.nap (seconds int); INSERT INTO public.nap VALUES (600); GRANT SELECT ON public.nap TO PUBLIC");
    let nap = "pg_sleep((SELECT seconds FROM public.nap))";
    let ids: Vec<String> = (0..4)
        .map(|n| api.client.submit(&query(&format!("SELECT pg_try_advisory_lock({n}) AS free, {nap}"))))
        .collect();
    eventually("it runs all of them", || held_by(&queue, &doomed) == 4 && target.count(SLEEPING) == 4);
    // Its sessions sleep on for ten minutes, so that nobody but the rescuer ends them.
    doomed.signal(Signal::SIGSTOP);
    let _heir = Server::worker(&queue, &target, &["--workers", "4"]);
    let (more, held) = (api.client.submit(&query("SELECT 1")), held_by(&queue, &doomed));
    assert_eq!(api.client.ended(&more)["state"], "succeeded");
    doomed.signal(Signal::SIGKILL);
    doomed.signal(Signal::SIGCONT);
    doomed.wait();
    assert_eq!(target.count(SLEEPING), 4, "their sessions ended with the process");
    target.run("UPDATE public.nap SET seconds = 0");
    bury(&queue, &doomed);
    for id in &ids {
        let job = ended_within(&api.client, id, Duration::from_secs(90));
        assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
        assert_eq!(job["interruptions"], 1, "{held} were held: {job}");
        let data = api.client.get(&format!("/v1/jobs/{id}/result/data?format=ndjson")).json();
        assert_eq!(data["free"], true, "the old session still held its lock");
    }
    history::check(&queue, &[ids, vec![more]].concat());
}

#[test]
fn a_worker_that_slept_beyond_its_lease_changes_nothing_when_it_wakes() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let sleeper = Server::worker(&queue, &target, &["--workers", "2"]);
    let id = api.client.submit(&query("SELECT pg_sleep(3), g FROM generate_series(1, 1) g"));
    eventually("it runs", || held_by(&queue, &sleeper) == 1 && target.count(SLEEPING) == 1);
    sleeper.signal(Signal::SIGSTOP);
    let _heir = Server::worker(&queue, &target, &["--workers", "2"]);
    bury(&queue, &sleeper);
    let job = ended_within(&api.client, &id, Duration::from_secs(90));
    assert_eq!((&job["state"], &job["interruptions"]), (&json!("succeeded"), &json!(1)), "{job}");
    let before = queue.text("SELECT string_agg(f::text, ';') FROM finished_jobs f");
    let data = api.client.get(&format!("/v1/jobs/{id}/result/data")).text();
    sleeper.signal(Signal::SIGCONT);
    eventually("it learns that its end came too late", || {
        let log = sleeper.log();
        log.contains("the lease was lost: the end of this attempt is not written") && log.contains("declared dead")
    });
    assert_eq!(queue.text("SELECT string_agg(f::text, ';') FROM finished_jobs f"), before);
    assert_eq!(api.client.get(&format!("/v1/jobs/{id}/result/data")).text(), data);
    assert_eq!(queue.count("SELECT count(*) FROM result_parts p WHERE NOT EXISTS (SELECT FROM results r WHERE r.job_id = p.job_id AND r.lease = p.lease)"), 0);
    // It goes on under another name.
    let more: Vec<String> = (0..6).map(|_| api.client.submit(&query("SELECT pg_sleep(0.5)"))).collect();
    more.iter().for_each(|id| assert_eq!(api.client.ended(id)["state"], "succeeded"));
    assert_eq!(queue.count("SELECT count(DISTINCT worker_id) FROM all_attempts WHERE outcome = 'succeeded'"), 2);
    history::check(&queue, &[vec![id], more].concat());
}

#[test]
fn a_job_that_ends_its_process_three_times_is_poison() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let id = api.client.submit(&query("SELECT pg_sleep(600)"));
    for round in 1..=3 {
        let mut worker = Server::worker(&queue, &target, &[]);
        let lease = || {
            queue.text(&format!(
                "SELECT coalesce(max(lease), 0) FROM jobs WHERE backend_pid IS NOT NULL AND id = '{id}'"
            ))
        };
        eventually("it runs", || lease() == round.to_string() && target.count(SLEEPING) >= 1);
        worker.signal(Signal::SIGKILL);
        worker.wait();
        bury(&queue, &worker);
    }
    let _last = Server::worker(&queue, &target, &[]);
    let job = ended_within(&api.client, &id, Duration::from_secs(90));
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("poison")), "{job}");
    assert_eq!((&job["attempt"], &job["interruptions"]), (&json!(1), &json!(3)));
    assert_eq!(target.count(SLEEPING), 0);
    history::check(&queue, &[id]);
}

#[test]
fn a_crash_of_postgres_under_load_loses_nothing_and_all_resumes() {
    let postgres = Postgres::start();
    let (queue, target) = (postgres.queue(), postgres.work());
    let api = Server::api(&queue, &[]);
    let workers = [Server::worker(&queue, &target, &[]), Server::worker(&queue, &target, &[])];
    let load = Load::start(&Servers::new(&[api.client.address]), 4, &query("SELECT pg_sleep(0.02)"));
    for _ in 0..2 {
        load.wait_for(40);
        let mut cluster = postgres.cluster.lock().unwrap();
        cluster.stop(StopMode::Immediate);
        assert_eq!(api.client.get("/healthz").status, 200);
        assert!(workers.iter().all(|worker| worker.client.get("/healthz").status == 200));
        eventually("nobody is ready", || workers.iter().all(|worker| worker.client.get("/readyz").status == 503));
        cluster.start_server().unwrap();
    }
    load.wait_for(40);
    let ids = load.stop();
    // What ran when the server went is tried again later: time passes here.
    eventually("everything has ended", || {
        queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
        queue.count("SELECT count(*) FROM jobs") == 0
    });
    history::check(&queue, &ids);
    assert_eq!(queue.count("SELECT count(*) FROM finished_jobs WHERE state <> 'succeeded'"), 0);
    assert_eq!(queue.count("SELECT count(*) FROM finished_jobs"), i64::try_from(ids.len()).unwrap());
    eventually("all are ready again", || workers.iter().all(|worker| worker.client.get("/readyz").status == 200));
}

#[test]
fn a_minute_without_the_queue_has_nothing_run_twice() {
    let postgres = Postgres::shared();
    let (mut queue, target) = (postgres.queue(), postgres.work());
    let proxy = Proxy::before(&queue.dsn);
    let direct = queue.clone();
    queue.dsn = proxy.dsn(&queue.dsn);
    let api = Server::api(&queue, &[]);
    let workers =
        [Server::worker(&queue, &target, &["--workers", "1"]), Server::worker(&queue, &target, &["--workers", "1"])];
    let ids: Vec<String> = (0..2).map(|_| api.client.submit(&query("SELECT pg_sleep(90)"))).collect();
    eventually("both run", || workers.iter().all(|worker| held_by(&direct, worker) == 1));
    proxy.set(Mode::Refuse);
    proxy.cut();
    let outage = Instant::now();
    while outage.elapsed() < Duration::from_secs(60) {
        assert_eq!(api.client.get("/healthz").status, 200);
        assert_eq!(api.client.get(&format!("/v1/jobs/{}", ids[0])).problem().0, 503);
        assert_eq!(target.count(SLEEPING), 2, "fenced work goes on");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(workers.iter().all(|worker| worker.client.get("/readyz").status == 503));
    proxy.set(Mode::Pass);
    for id in &ids {
        eventually("it is found again", || api.client.get(&format!("/v1/jobs/{id}")).status == 200);
        let job = ended_within(&api.client, id, Duration::from_secs(90));
        assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
        assert_eq!(job["interruptions"], 0, "{job}");
    }
    assert_eq!(direct.count("SELECT max(lease) FROM finished_jobs"), 1);
    history::check(&direct, &ids);
}

#[test]
fn a_rolling_restart_fails_no_request_and_charges_no_attempt() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    let mut servers = [Server::serve(&queue, &target, &[]), Server::serve(&queue, &target, &[])];
    let known = Servers::new(&[servers[0].client.address, servers[1].client.address]);
    let load = Load::start(&known, 4, &query("SELECT pg_sleep(0.05)"));
    // Both, one after the other, and the first once more.
    for n in [0, 1, 0] {
        load.wait_for(30);
        let old = servers[n].client.address;
        servers[n].signal(Signal::SIGTERM);
        assert!(servers[n].wait().success(), "{}", servers[n].log());
        servers[n] = Server::serve(&queue, &target, &[]);
        known.replace(old, servers[n].client.address);
    }
    load.wait_for(30);
    let ids = load.stop();
    eventually("everything has ended", || queue.count("SELECT count(*) FROM jobs") == 0);
    history::check(&queue, &ids);
    let charged = "SELECT count(*) FROM finished_jobs WHERE state <> 'succeeded' OR attempt <> 1";
    assert_eq!(queue.count(charged), 0);
    assert_eq!(queue.count("SELECT count(*) FROM finished_jobs"), i64::try_from(ids.len()).unwrap());
}

#[test]
fn a_server_without_a_free_slot_is_waited_for() {
    let postgres = Postgres::with(&[("max_connections", "40")]);
    let (queue, target) = (postgres.queue(), postgres.work());
    let server = Server::serve(&queue, &target, &[]);
    let load = Load::start(&Servers::new(&[server.client.address]), 3, &query("SELECT pg_sleep(0.01)"));
    load.wait_for(20);
    // All that is left goes to others, and what the server gives back does too.
    let mut others = Vec::new();
    let mut take_all = || {
        while let Ok(session) = slowlane::pq::Session::connect(&target.dsn) {
            others.push(session);
        }
    };
    take_all();
    queue.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'slowlane%' AND pid <> pg_backend_pid()");
    // A session that was told to end gives its slot back when it has ended, a moment later.
    eventually("it says that it isn't ready", || {
        take_all();
        assert_eq!(server.client.get("/healthz").status, 200);
        server.client.get("/readyz").status == 503
    });
    drop(others);
    eventually("it comes back by itself", || server.client.get("/readyz").status == 200);
    load.wait_for(20);
    let ids = load.stop();
    eventually("everything has ended", || {
        queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
        queue.count("SELECT count(*) FROM jobs") == 0
    });
    history::check(&queue, &ids);
    assert_eq!(queue.count("SELECT count(*) FROM finished_jobs WHERE state <> 'succeeded'"), 0);
}

#[test]
fn a_target_that_is_away_costs_no_attempt_however_long() {
    let postgres = Postgres::shared();
    let (queue, mut target) = (postgres.queue(), postgres.work());
    let proxy = Proxy::before(&target.dsn);
    target.dsn = proxy.dsn(&target.dsn);
    let server = Server::serve(&queue, &target, &["--workers", "2"]);
    // A session lies in the pool when the target goes.
    let before = server.client.submit(&query("SELECT 1"));
    assert_eq!(server.client.ended(&before)["state"], "succeeded");
    proxy.set(Mode::Refuse);
    proxy.cut();
    let waits = server.client.submit(&query("SELECT 2"));
    let once = json!({"kind": "execute", "max_attempts": 1, "args": {"statements": [{"sql": "SELECT 3"}]}});
    let once = server.client.submit(&once);
    // More often than they may be tried.
    let leases = || queue.count("SELECT coalesce(min(lease), 0) FROM jobs");
    eventually("both were tried again and again", || {
        queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
        leases() >= 4
    });
    let job = server.client.job(&waits);
    assert_eq!(
        (&job["error"]["code"], &job["error"]["retryable"]),
        (&json!("target_unavailable"), &json!(true)),
        "{job}"
    );
    assert_eq!(server.client.get("/readyz").status, 200);
    proxy.set(Mode::Pass);
    for id in [&waits, &once] {
        eventually("it has run", || {
            queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
            server.client.job(id)["state"] == "succeeded"
        });
        let job = server.client.job(id);
        assert_eq!((&job["attempt"], &job["interruptions"]), (&json!(1), &json!(0)), "{job}");
    }
    history::check(&queue, &[before, waits, once]);
}

/// A file system of a few megabytes. Unmounted when it is dropped.
struct SmallDisk {
    folder: tempfile::TempDir,
    mounted: bool,
}

impl SmallDisk {
    /// Only root can have a real one. `None` where that isn't allowed.
    fn mount(megabytes: u32) -> Option<SmallDisk> {
        let folder = tempfile::Builder::new().prefix("slowlane-disk-").tempdir().unwrap();
        let size = format!("size={megabytes}m,mode=0777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk { folder, mounted: true })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        }
    }
}

/// Puts the store of results where there is no room for much.
fn fill_up(queue: &Database, disk: Option<&SmallDisk>) {
    let Some(disk) = disk else {
        // The server's own words, from a trigger: the next best thing without the right to mount.
        return queue.run(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF (SELECT count(*) FROM result_parts) > 3 THEN
                    RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'could not extend file \"base/1/1\": No space left on device';
                END IF; RETURN NEW; END $$;
             CREATE TRIGGER full_disk BEFORE INSERT ON result_parts FOR EACH ROW EXECUTE FUNCTION full_disk();
             GRANT SELECT ON result_parts TO PUBLIC",
        );
    };
    let location = disk.path().join("space");
    std::fs::create_dir(&location).unwrap();
    if let Some(user) = ["postgres", "nobody"].into_iter().find_map(|name| nix::unistd::User::from_name(name).unwrap())
    {
        std::os::unix::fs::chown(&location, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    queue.run(&format!("CREATE TABLESPACE small LOCATION '{}'", location.display()));
    let partitions = queue.text(
        "SELECT string_agg(inhrelid::regclass::text, ' ') FROM pg_inherits WHERE inhparent = 'result_parts'::regclass",
    );
    for partition in partitions.split(' ') {
        queue.run(&format!("ALTER TABLE {partition} SET TABLESPACE small"));
        // What a value is too long for lies beside its table, and moves with it.
    }
}

#[test]
fn a_full_disk_of_the_result_store_fails_the_job_and_nothing_else() {
    let postgres = Postgres::start();
    let (queue, target) = (postgres.queue(), postgres.work());
    let disk = SmallDisk::mount(8);
    fill_up(&queue, disk.as_ref());
    let server = Server::serve(&queue, &target, &[]);
    // 40 MB that don't get smaller, against 8 MB of room.
    let large = "SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 40) x, generate_series(1, 32768) g GROUP BY x";
    let mut job = query(large);
    job["max_attempts"] = json!(2);
    let id = server.client.submit(&job);
    eventually("it waits for another attempt", || server.client.job(&id)["state"] == "scheduled");
    assert_eq!(server.client.job(&id)["error"]["code"], "result_store_full");
    queue.run("UPDATE jobs SET run_at = now() WHERE state = 'scheduled'");
    let ended = server.client.ended(&id);
    assert_eq!((&ended["state"], &ended["error"]["code"]), (&json!("failed"), &json!("result_store_full")), "{ended}");
    assert_eq!(ended["result"]["state"], "none");
    assert_eq!(server.client.get(&format!("/v1/jobs/{id}/result/data")).problem().1, "job_failed");
    // Work without a result goes on.
    let other = server.client.submit(&json!({"kind": "execute", "args": {"statements": [{"sql": "SELECT 1"}]}}));
    assert_eq!(server.client.ended(&other)["state"], "succeeded");
    history::check(&queue, &[id, other]);
    drop(server);
    drop(postgres);
}
