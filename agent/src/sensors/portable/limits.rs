//! The system's limits on watches, for people: which one, how much it is, and what to do.
//!
//! Assumes that whoever reads it has root on the host. On a system without these limits they say less.

/// Where Linux keeps them (inotify(7)).
const WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";
const INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
/// What is proposed at least: about half a gigabyte of kernel memory when all of it is used.
const WATCHES_PROPOSED_MIN: u64 = 524_288;
const INSTANCES_PROPOSED_MIN: u64 = 1024;

/// No watch is left, and `watched` folders have one.
pub(crate) fn watches(watched: usize) -> String {
    let advice = advice("fs.inotify.max_user_watches", read(WATCHES), WATCHES_PROPOSED_MIN);
    format!("no watches are left after {watched} folders; what is written in others is not seen: {advice}")
}

/// No watcher is left.
pub(crate) fn instances() -> String {
    advice("fs.inotify.max_user_instances", read(INSTANCES), INSTANCES_PROPOSED_MIN)
}

fn read(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Twice what there is, and no less than `proposed_min`.
fn advice(name: &str, now: Option<u64>, proposed_min: u64) -> String {
    match now {
        Some(now) => {
            let proposed = now.saturating_mul(2).max(proposed_min);
            format!("raise {name}, which is {now}, such as by `sysctl {name}={proposed}`")
        }
        None => format!("raise {name} where the system has it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_names_the_limit_its_value_and_more_than_that() {
        for (now, expected) in [
            (Some(8192), "raise fs.x, which is 8192, such as by `sysctl fs.x=524288`"),
            (Some(1_000_000), "raise fs.x, which is 1000000, such as by `sysctl fs.x=2000000`"),
            (None, "raise fs.x where the system has it"),
        ] {
            assert_eq!(advice("fs.x", now, WATCHES_PROPOSED_MIN), expected);
        }
    }
}
