//! What agents send: files written and programs run, as a busy server makes them, and detections. About as large as the
//! real ones: no field that the sensors fill on Linux is left out.

use vidette_protocol::batch;
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, event::Kind};

/// Rules that detections name.
pub const RULES: u64 = 1_000;

/// The name of one of them.
#[must_use]
pub fn rule_name(number: u64) -> String {
    format!("Linux_Sample_Rule_{number:04}")
}

/// Telemetry: every third a program that was run, the others files that were written.
#[must_use]
pub fn telemetry(number: u64, host_name: &str, time_unix_ns: i64) -> wire::Event {
    let process = process(number);
    let kind = if number.is_multiple_of(3) {
        let process = wire::Process { ancestors: ancestors(number), ..process };
        Kind::Process(wire::ProcessEvent {
            action: wire::ProcessAction::Run as i32,
            process: Some(process),
            image: Some(file(number, "/usr/bin/sort")),
            verdict: wire::Verdict::Clean as i32,
            ..Default::default()
        })
    } else {
        Kind::File(wire::FileEvent {
            action: wire::FileAction::Written as i32,
            file: Some(file(number, &format!("/srv/app/cache/{:02x}/{number:016x}.tmp", number % 256))),
            process: Some(process),
            verdict: wire::Verdict::Clean as i32,
            rules_version: "2026-11-21.1".into(),
            ..Default::default()
        })
    };
    event(number, host_name, time_unix_ns, wire::Severity::Info, kind)
}

/// An alert: mostly a detection, now and then an audit, health or gap event. Few are severe.
#[must_use]
pub fn alert(number: u64, host_name: &str, time_unix_ns: i64) -> wire::Event {
    // Some rules match often, most hardly ever.
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let rule = (spread % RULES).min(spread / RULES % RULES);
    let severity = match spread % 1_000 {
        0..600 => wire::Severity::Info,
        600..850 => wire::Severity::Low,
        850..950 => wire::Severity::Medium,
        950..990 => wire::Severity::High,
        _ => wire::Severity::Critical,
    };
    let kind = match spread / 7 % 50 {
        0 => Kind::Audit(wire::Audit {
            action: "rules-loaded".into(),
            outcome: "success".into(),
            ..Default::default()
        }),
        1 => Kind::Health(wire::Health {
            component: "fanotify".into(),
            state: 1,
            message: "sees again".into(),
        }),
        2 => Kind::Gap(wire::Gap { reason: 4, count: Some(12), ..Default::default() }),
        _ => Kind::Detection(wire::Detection {
            trigger: wire::Trigger::CloseWrite as i32,
            verdict: wire::Verdict::Matched as i32,
            file: Some(wire::File {
                sha256: digest(number + 1),
                ..file(number, &format!("/srv/app/upload/{number:012x}.php"))
            }),
            process: Some(process(number)),
            rules: vec![matched(rule, severity)],
            rules_version: "2026-11-21.1".into(),
            scan_us: 340,
            ..Default::default()
        }),
    };
    event(number, host_name, time_unix_ns, severity, kind)
}

/// Batches of telemetry to be sent again and again under other numbers: the session sets `epoch` and `first_seq`.
///
/// # Errors
/// When they are larger than a batch may be.
pub fn packed(events: usize, batches: usize, time_unix_ns: i64) -> anyhow::Result<Vec<wire::Batch>> {
    let bodies = |batch: usize| {
        let numbers = (batch * events..(batch + 1) * events).map(|number| number as u64);
        numbers
            .map(|number| prost::Message::encode_to_vec(&telemetry(number, "host-00042", time_unix_ns)))
            .collect()
    };
    (0..batches).map(|batch| Ok(batch::pack(Class::Telemetry, 1, 1, 0, bodies(batch))?)).collect()
}

fn event(
    number: u64,
    host_name: &str,
    time_unix_ns: i64,
    severity: wire::Severity,
    kind: Kind,
) -> wire::Event {
    wire::Event {
        time_unix_ns,
        uptime_ns: 3_600_000_000_000 + number * 1_000,
        host_name: host_name.as_bytes().to_vec(),
        boot_id: "5f0c7b1e-3d9a-4c55-9e0d-2f6b8a1c4e77".into(),
        severity: severity as i32,
        kind: Some(kind),
    }
}

fn digest(number: u64) -> Vec<u8> {
    blake3::hash(&number.to_le_bytes()).as_bytes().to_vec()
}

fn entity(number: u64) -> String {
    data_encoding::HEXLOWER.encode(&digest(number)[..16])
}

fn file(number: u64, path: &str) -> wire::File {
    wire::File {
        path: path.as_bytes().to_vec(),
        device: 0xfe00,
        inode: 1_000_000 + number % 100_000,
        size: 512 + number % 65_536,
        mode: 0o100_644,
        uid: 33,
        gid: 33,
        mtime_unix_ns: 1_790_000_000_000_000_000 + number.cast_signed(),
        ctime_unix_ns: 1_790_000_000_000_000_000 + number.cast_signed(),
        blake3: digest(number),
        ..Default::default()
    }
}

fn process(number: u64) -> wire::Process {
    let start_ns = 3_000_000_000_000 + number % 512 * 1_000_000;
    wire::Process {
        entity_id: entity(number % 512),
        pid: 2_000 + u32::try_from(number % 512).unwrap_or(0),
        start_ns,
        executable: b"/usr/sbin/php-fpm8.2".to_vec(),
        args: vec![b"php-fpm: pool www".to_vec()],
        name: b"php-fpm8.2".to_vec(),
        working_directory: b"/srv/app".to_vec(),
        uid: Some(33),
        gid: Some(33),
        user_name: b"www-data".to_vec(),
        parent: Some(wire::ParentProcess {
            entity_id: entity(7),
            pid: 812,
            executable: b"/usr/sbin/php-fpm8.2".to_vec(),
            args: vec![b"php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)".to_vec()],
            name: b"php-fpm8.2".to_vec(),
        }),
        source: wire::Source::Join as i32,
        cgroup: b"/system.slice/php8.2-fpm.service".to_vec(),
        sources: Some(wire::Sources { start: 2, parent: 2, args: 3, user: 2, login: 3, cgroup: 3 }),
        ..Default::default()
    }
}

fn ancestors(number: u64) -> Vec<wire::Ancestor> {
    let ancestor = |pid: u32, executable: &str, name: &str| wire::Ancestor {
        entity_id: entity(u64::from(pid)),
        pid,
        executable: executable.as_bytes().to_vec(),
        name: name.as_bytes().to_vec(),
    };
    vec![
        ancestor(600 + u32::try_from(number % 3).unwrap_or(0), "/usr/bin/bash", "bash"),
        ancestor(1, "/usr/lib/systemd/systemd", "systemd"),
    ]
}

fn matched(rule: u64, severity: wire::Severity) -> wire::RuleMatch {
    wire::RuleMatch {
        name: rule_name(rule),
        namespace: "linux".into(),
        id: format!("VID-{rule:04}"),
        description: "A page that would run what a visitor sends".into(),
        severity: severity as i32,
        author: "Vidette".into(),
        techniques: vec!["T1505.003".into()],
        tags: vec!["webshell".into()],
        patterns: vec![wire::PatternMatch {
            identifier: "$call".into(),
            offset: 61,
            length: 24,
            data: b"base64_decode($_POST['x'".to_vec(),
        }],
        ..Default::default()
    }
}
