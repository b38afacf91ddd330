use super::*;
use crate::cli::args::{Args, Command};
use clap::Parser;
use std::time::Duration;

fn request(more: &str) -> Request {
    let line = format!("keepsweep sweep 10.0.0.0/24 -p 80 -q {more}");
    let Command::Sweep(args) =
        Args::try_parse_from(line.split_whitespace()).expect("valid").command
    else {
        panic!("not a sweep");
    };
    Request::resolve(*args).expect("valid").0
}

#[test]
fn names_and_labels_travel_into_the_records() {
    let dir = tempfile::tempdir().expect("a directory");
    let list = dir.path().join("list");
    std::fs::write(&list, "10.0.0.0/31:80 rack 7\n").expect("written");
    let line = format!("keepsweep sweep --targets {}", list.display());
    let Command::Sweep(args) =
        Args::try_parse_from(line.split_whitespace()).expect("valid").command
    else {
        panic!("not a sweep");
    };
    let (request, notes) = Request::resolve(*args).expect("valid");
    assert!(notes.is_empty());
    assert_eq!(request.names.of(TargetId(1)), (None, Some("rack 7")));
}

#[test]
fn single_settings_override_the_profile() {
    let plan = request("--profile linux --idle 60s --rate max --seed 7").setup.plan;
    assert_eq!(plan.keepalive.idle, Duration::from_secs(60));
    assert_eq!(plan.keepalive.interval, Duration::from_secs(75));
    assert_eq!(plan.keepalive.count, 9);
    assert_eq!((plan.rate_pps, plan.seed), (None, 7));
    assert_ne!(request("").setup.plan.seed, request("").setup.plan.seed);
}
