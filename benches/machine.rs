//! What the numbers were measured on.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::Scale;
use crate::postgres::{Postgres, SETTINGS};

/// Lines about the machine and the settings, in Markdown.
pub fn describe(postgres: &Postgres, scale: Scale) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal:").trim_end_matches("kB").trim().parse::<f64>().unwrap_or(0.0);
    let version = postgres.queue().text("SHOW server_version");
    let settings: Vec<String> = SETTINGS.iter().map(|(name, value)| format!("`{name} = {value}`")).collect();
    vec![
        format!(
            "{cores} cores ({}) and {:.0} GiB of memory, shared by server, clients and Postgres; Linux {}; {:.0} \
             fdatasync/s of 8 KiB on the cluster's disk",
            field("/proc/cpuinfo", "model name").trim_start_matches([' ', ':']),
            memory / 1024.0 / 1024.0,
            fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            syncs_per_second(postgres)
        ),
        format!("Postgres {version}, over TCP on loopback, with {}", settings.join(", ")),
        format!("Medians of {} rounds, with the least and the most of them", scale.rounds),
    ]
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}

/// What a single committer that does nothing else could reach.
fn syncs_per_second(postgres: &Postgres) -> f64 {
    let path = postgres.folder().join("sync");
    let mut file = File::create(&path).unwrap();
    let block = [7; 8192];
    for _ in 0..64 {
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
    let (began, mut syncs) = (Instant::now(), 0_u32);
    while began.elapsed() < Duration::from_secs(1) {
        file.write_all_at(&block, u64::from(syncs % 64) * 8192).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    let per_second = f64::from(syncs) / began.elapsed().as_secs_f64();
    fs::remove_file(path).unwrap();
    per_second
}
