//! How much the services could do if somebody took them over, by systemd's own measure, and what the units promise.

use super::rig::tree;
use std::fs;
use std::process::Command;
use vidette_tests::debian::succeed;

/// The overall figure of `systemd-analyze security`: 0 is nothing, 10 everything.
fn exposure(unit: &str) -> f64 {
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager"]).arg(tree().join("packaging").join(unit));
    let said = succeed("systemd-analyze security", command.env("LC_ALL", "C.UTF-8")).expect("measured");
    let said = String::from_utf8(said.stdout).expect("UTF-8");
    let line = said.lines().find(|line| line.contains("Overall exposure level")).expect("a figure");
    let figure = line.rsplit_once(": ").expect("a figure").1.split_whitespace().next().expect("a figure");
    figure.parse().expect("a number")
}

#[test]
fn the_units_expose_no_more_than_promised() {
    for (unit, exposure_max) in [("vidette-agent.service", 4.0), ("vidette-collector.service", 1.5)] {
        let exposure = exposure(unit);
        println!("{unit}: {exposure}");
        assert!(exposure > 0.0 && exposure <= exposure_max, "{unit}: {exposure}, promised is {exposure_max}");
    }
}

#[test]
fn the_services_come_back_and_are_bounded() {
    for unit in ["vidette-agent.service", "vidette-collector.service"] {
        let text = fs::read_to_string(tree().join("packaging").join(unit)).expect("a unit");
        for line in
            ["Restart=always", "StartLimitIntervalSec=0", "NoNewPrivileges=yes", "MemoryDenyWriteExecute=yes"]
        {
            assert!(text.lines().any(|own| own == line), "{unit}: no {line}");
        }
        for line in ["Type=notify", "NotifyAccess=main"] {
            assert!(text.lines().any(|own| own == line), "{unit}: no {line}");
        }
        for key in ["WatchdogSec=", "MemoryMax=", "TasksMax=", "SystemCallFilter=", "CapabilityBoundingSet="]
        {
            assert!(text.lines().any(|own| own.starts_with(key)), "{unit}: no {key}");
        }
    }
    let agent = fs::read_to_string(tree().join("packaging/vidette-agent.service")).expect("a unit");
    // These would hide files, devices or processes of the host from it.
    for key in [
        "PrivateTmp",
        "ProtectHome",
        "PrivateDevices",
        "ProtectProc",
        "ProcSubset",
        "PrivateNetwork",
        "InaccessiblePaths",
    ] {
        assert!(!agent.lines().any(|own| own.starts_with(key)), "the agent would be blind: {key}");
    }
}
