//! A standby of a cluster, which can stop receiving and be promoted.

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use slowlane::pq::Session;

use super::eventually;
use super::postgres::{Database, Postgres};

/// A copy of a cluster that follows it.
pub struct Standby {
    _folder: tempfile::TempDir,
    process: std::process::Child,
    /// Its receiver, while it is stopped.
    stopped: std::cell::Cell<Option<nix::unistd::Pid>>,
    pub port: u16,
}

impl Standby {
    /// Follows `primary` under the name `standby`.
    pub fn of(primary: &Postgres) -> Standby {
        let superuser = primary.superuser();
        let folder = tempfile::Builder::new().prefix("slowlane-standby-").tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = folder.path().join("data");
        let source = superuser.clone().with("dbname", "").with("application_name", "standby");
        back_up(primary, &data, source.conninfo().expose());
        let mut command = std::process::Command::new(primary.program("postgres"));
        let further = [
            "synchronous_standby_names=",
            "max_connections=400",
            "fsync=off",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
        ];
        command.arg("-D").arg(&data).args(["-c", &format!("port={port}")]);
        command.args(further.iter().flat_map(|setting| ["-c", setting]));
        if let Some(user) = owner_of(primary) {
            own(folder.path(), user);
            std::os::unix::process::CommandExt::uid(&mut command, user.0);
            std::os::unix::process::CommandExt::gid(&mut command, user.1);
        }
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.current_dir("/").spawn().unwrap();
        super::postgres::watch_process(process.id());
        let standby = Standby { _folder: folder, process, stopped: std::cell::Cell::default(), port };
        eventually("the standby follows", || {
            let mut session = Session::connect(&superuser).unwrap();
            let rows =
                session.query("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", &[]).unwrap();
            rows.get(0, 0) == Some("1")
        });
        standby
    }

    /// The same database here.
    pub fn database(&self, of: &Database) -> Database {
        let here = |dsn: &slowlane::dsn::Dsn| dsn.clone().with("port", &self.port.to_string());
        Database { dsn: here(&of.dsn), superuser: here(&of.superuser) }
    }

    fn receiver(&self, of: &Database) -> nix::unistd::Pid {
        let receivers = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
        nix::unistd::Pid::from_raw(self.database(of).text(receivers).parse().unwrap())
    }

    /// It receives nothing more.
    pub fn stop_receiving(&self, of: &Database) {
        let receiver = self.receiver(of);
        nix::sys::signal::kill(receiver, Signal::SIGSTOP).unwrap();
        self.stopped.set(Some(receiver));
    }

    /// It receives again what it is sent.
    pub fn receive_again(&self) {
        if let Some(receiver) = self.stopped.take() {
            nix::sys::signal::kill(receiver, Signal::SIGCONT).unwrap();
        }
    }

    /// What it received and hadn't written goes with its receiver.
    pub fn lose_what_was_received(&self) {
        if let Some(receiver) = self.stopped.take() {
            // It may have gone with its primary.
            let _ = nix::sys::signal::kill(receiver, Signal::SIGKILL);
        }
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        self.lose_what_was_received();
        let process = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        let _ = nix::sys::signal::kill(process, Signal::SIGQUIT);
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Copies a running cluster so that the copy follows it. By the server's own functions and not by `pg_basebackup`,
/// which only knows servers up to its own version.
fn back_up(primary: &Postgres, to: &Path, source: &str) {
    let from = primary.cluster.lock().unwrap().folder().join("pgdata");
    let mut session = Session::connect(&primary.superuser()).unwrap();
    // Before 15 they have other names. The session stays in the backup until its end.
    let (start, stop) = match session.server_version() >= 150_000 {
        true => ("pg_backup_start('standby', true)", "pg_backup_stop(false)"),
        false => ("pg_start_backup('standby', true, false)", "pg_stop_backup(false, false)"),
    };
    session.query(&format!("SELECT {start}"), &[]).unwrap();
    copy(&from, to);
    let stopped = session.query(&format!("SELECT labelfile FROM {stop}"), &[]).unwrap();
    fs::write(to.join("backup_label"), stopped.get(0, 0).unwrap()).unwrap();
    fs::write(to.join("standby.signal"), "").unwrap();
    let setting = format!("primary_conninfo = '{}'\n", source.replace('\'', "''"));
    fs::OpenOptions::new()
        .append(true)
        .open(to.join("postgresql.auto.conf"))
        .unwrap()
        .write_all(setting.as_bytes())
        .unwrap();
}

/// All but what belongs to the running process. What goes away meanwhile isn't needed.
fn copy(from: &Path, to: &Path) {
    const EMPTY: [&str; 7] =
        ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];
    fs::DirBuilder::new().mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        match name.to_str().unwrap() {
            "postmaster.pid" | "postmaster.opts" => {}
            empty if kind.is_dir() && EMPTY.contains(&empty) => {
                fs::DirBuilder::new().mode(0o700).create(to.join(empty)).unwrap();
            }
            _ if kind.is_dir() => copy(&path, &to.join(name)),
            _ => match fs::copy(&path, to.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", path.display()),
                _ => {}
            },
        }
    }
}

/// Whom the files of a cluster belong to, where that isn't us: the server refuses to run as root.
fn owner_of(postgres: &Postgres) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let folder = postgres.cluster.lock().unwrap().folder().join("pgdata");
    let data = std::fs::metadata(folder).unwrap();
    nix::unistd::geteuid().is_root().then_some((data.uid(), data.gid()))
}

fn own(folder: &std::path::Path, (user, group): (u32, u32)) {
    std::os::unix::fs::lchown(folder, Some(user), Some(group)).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            own(&path, (user, group));
        } else {
            std::os::unix::fs::lchown(&path, Some(user), Some(group)).unwrap();
        }
    }
}
