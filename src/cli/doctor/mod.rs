//! `keepsweep doctor`: what this machine can do, what is missing, and what to do about it.
#![forbid(unsafe_code)]

mod checks;

use super::args::{DoctorArgs, DoctorFormat};
use super::exit::{Exit, Failure};
use crate::io::facts::{self, Conntrack, Kernel, Link};
use crate::io::host::Reader;
use crate::io::privilege::Capability;
use crate::io::{guard, ports, privilege, shield, xdp};
use crate::report::table::{grid_to_width, shown};
use anyhow::anyhow;
use checks::{Check, Seen, Status};
use comfy_table::Cell;
use serde::Serialize;
use std::io::{self, Write};

const SCHEMA: &str = "keepsweep/1";

/// Runs `keepsweep doctor`.
///
/// # Errors
/// [`Failure`]: there is no such interface, or the system would not even list them.
pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    let links = facts::links().map_err(|error| Failure::System(error.into()))?;
    if let Some(name) = &args.interface
        && !links.iter().any(|link| link.interface.name == *name)
    {
        let names: Vec<_> = links.iter().map(|link| link.interface.name.as_str()).collect();
        let names = names.join(", ");
        return Err(Failure::Usage(anyhow!(
            "interface {name}: no such interface; there are {names}"
        )));
    }
    let checks = examine(&links, args.interface.as_deref());
    let report = match args.format {
        DoctorFormat::Table => table(&checks),
        DoctorFormat::Ndjson => ndjson(&checks),
    };
    let mut out = io::stdout().lock();
    match out.write_all(report.as_bytes()).and_then(|()| out.flush()) {
        // Who stops reading has read enough, but the exit code still tells.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(Failure::System(anyhow!("write to standard output: {error}")));
        }
        Ok(()) | Err(_) => {}
    }
    Ok(if can_sweep(&checks) { Exit::AllAlive } else { Exit::System })
}

fn can_sweep(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Missing)
}

/// Looks at everything, at `only` alone among the interfaces if it is given.
fn examine(links: &[Link], only: Option<&str>) -> Vec<Check> {
    let seen = |link: &Link| {
        let name = &link.interface.name;
        Seen { link: link.clone(), tcx: guard::tcx_programs(name), is_chosen: only.is_some() }
    };
    let chosen = |link: &&Link| only.is_none_or(|name| link.interface.name == name);
    let seen: Vec<Seen> = links.iter().filter(chosen).map(seen).collect();

    let held = privilege::require(privilege::SWEEP);
    let in_user_namespace = facts::in_user_namespace();
    let has =
        |capability| privilege::require(&[capability]).is_ok() && in_user_namespace != Some(true);
    let may_ask = has(Capability::CAP_NET_ADMIN);
    let kernel = Kernel::read().ok();
    let mut checks = vec![
        checks::capabilities(&held, in_user_namespace),
        checks::kernel(kernel.as_ref()),
        checks::guard(guard::rehearse()),
        checks::tcx(&seen, may_ask),
        checks::xdp(xdp::rehearse()),
        checks::btf(kernel.as_ref()),
        checks::connections(
            Reader::open().and_then(|reader| Ok(reader.read(&mut |_| {})?.connections)),
        ),
        checks::shield(shield::rehearse()),
        checks::audit_reach(has(Capability::CAP_SYS_ADMIN), has(Capability::CAP_SYS_PTRACE)),
        checks::bpf_settings(kernel.as_ref()),
        checks::source_ports(&ports::DEFAULT, ports::check(&ports::DEFAULT)),
        checks::open_files(facts::open_files_at_most(), links),
        checks::locked_memory(facts::locked_memory_at_most()),
        checks::conntrack(Conntrack::read()),
        checks::neighbours(facts::neighbours_at_most()),
    ];
    if only.is_none() {
        checks.push(checks::interfaces(&seen));
    }
    for seen in &seen {
        checks.push(checks::interface(seen));
        checks.extend(checks::xdp_path(seen));
    }
    checks
}

fn table(checks: &[Check]) -> String {
    let row = |check: &Check| {
        let name = match &check.interface {
            Some(interface) => format!("{} {}", check.check, shown(interface)),
            None => check.check.to_owned(),
        };
        let mut found = shown(&check.found);
        if let Some(remedy) = &check.remedy {
            found.push_str("\n→ ");
            found.push_str(&shown(remedy));
        }
        vec![Cell::new(name), Cell::new(check.status.name()), Cell::new(found)]
    };
    let titles = ["CHECK", "STATUS", "FOUND"].map(Cell::new).to_vec();
    let grid = grid_to_width(std::iter::once(titles).chain(checks.iter().map(row)));
    let missing = checks.iter().filter(|check| check.status == Status::Missing).count();
    let verdict = match missing {
        0 => "sweep can run".to_owned(),
        missing => format!("sweep cannot run yet: {missing} missing, see →"),
    };
    format!("{grid}\n\n{verdict}\n")
}

/// Field order is part of the format.
#[derive(Serialize)]
struct CheckObject<'a> {
    schema: &'static str,
    r#type: &'static str,
    check: &'static str,
    interface: Option<&'a str>,
    status: &'static str,
    found: &'a str,
    remedy: Option<&'a str>,
}

fn ndjson(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let object = CheckObject {
            schema: SCHEMA,
            r#type: "check",
            check: check.check,
            interface: check.interface.as_deref(),
            status: check.status.name(),
            found: &check.found,
            remedy: check.remedy.as_deref(),
        };
        // Strings only: there is nothing that could not be written.
        text.extend(serde_json::to_string(&object));
        text.push('\n');
    }
    text
}
