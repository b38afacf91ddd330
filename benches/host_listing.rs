//! Lists 20,000 connections of two processes by BPF iterators, beside `ss -tn` and `ss -tnp`.
//!
//! Runs in a network namespace of its own, which is gone with it. Needs root.

use keepsweep::io::host::Reader;
use keepsweep::time::Clock;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Both ends of a pair are connections of this host, and a descriptor each.
const PAIRS: usize = 5_000;
const HOLDERS: usize = 2;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("hold") => hold(),
        runs => measure(runs.unwrap_or("7").parse()?),
    }
}

/// Opens connections and keeps them until standard input ends.
fn hold() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut pairs = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        pairs.push((TcpStream::connect(address)?, listener.accept()?));
    }
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn measure(runs: usize) -> Result<(), Box<dyn Error>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        return Err("ip link set lo up".into());
    }
    // Their standard input ends with this process.
    let mut holders = Vec::new();
    for _ in 0..HOLDERS {
        holders.push(start_holder()?);
    }

    let cpu_from = cpu_time()?;
    let (reader, opened) = timed(Reader::open);
    let reader = reader?;
    let cpu = ms(cpu_time()?.saturating_sub(cpu_from));
    println!("Reader::open, once: {:.1} ms, {cpu:.1} ms of CPU time", ms(opened));
    let [mut listed, mut attributed, mut ss, mut ssp, mut cpu] = [const { Vec::new() }; 5];
    // The first run warms up.
    for run in 0..=runs {
        let (count, took_read) = timed(|| reader.read(&mut |_| {}));
        let cpu_from = cpu_time()?;
        let ours = count?.connections;
        let (owned, took_owners) = timed(|| {
            let owners = reader.owners()?;
            let mut owned = 0;
            let reading = reader.read(&mut |connection| {
                owned += usize::from(owners.of(&connection).is_some());
            })?;
            Ok::<_, Box<dyn Error>>((reading.connections, owned))
        });
        let took_cpu = cpu_time()?.saturating_sub(cpu_from);
        let (theirs, took_ss) = timed(|| lines("ss", &["-Htn"]));
        let (_, took_ssp) = timed(|| lines("ss", &["-Htnp"]));
        let (theirs, owned) = (theirs?, owned?);
        let expected = HOLDERS * PAIRS * 2;
        if (ours, theirs, owned) != (expected, expected, (expected, expected)) {
            return Err(format!("counted {ours}, {owned:?}; ss {theirs}; of {expected}").into());
        }
        if run > 0 {
            listed.push(ms(took_read));
            attributed.push(ms(took_owners));
            cpu.push(ms(took_cpu));
            ss.push(ms(took_ss));
            ssp.push(ms(took_ssp));
        }
    }
    println!("{} connections, all owned, counts equal; {runs} runs, ms", HOLDERS * PAIRS * 2);
    for (what, values) in [
        ("keepsweep, listed", &mut listed),
        ("keepsweep, with owners", &mut attributed),
        ("  of it CPU time", &mut cpu),
        ("ss -tn", &mut ss),
        ("ss -tnp", &mut ssp),
    ] {
        values.sort_by(f64::total_cmp);
        let (min, max) = (values.first().copied(), values.last().copied());
        println!(
            "  {what:<23} median {:.1}  min {:.1}  max {:.1}",
            values.get(values.len() / 2).copied().unwrap_or_default(),
            min.unwrap_or_default(),
            max.unwrap_or_default()
        );
    }
    for mut holder in holders {
        drop(holder.stdin.take());
        holder.wait()?;
    }
    Ok(())
}

fn start_holder() -> Result<Child, Box<dyn Error>> {
    let mut holder = Command::new(std::env::current_exe()?)
        .arg("hold")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    let out = holder.stdout.as_mut().ok_or("no standard output")?;
    BufReader::new(out).read_line(&mut said)?;
    if said.trim() != "ready" {
        return Err("a holder did not get its connections: ulimit -n 20000".into());
    }
    Ok(holder)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let from = Clock.now();
    let result = work();
    (result, Clock.now().since(from))
}

/// What this thread has used of the CPU, for itself and in the kernel: others run on this machine.
fn cpu_time() -> Result<Duration, Box<dyn Error>> {
    let used = getrusage(UsageWho::RUSAGE_THREAD)?;
    let time = used.user_time() + used.system_time();
    Ok(Duration::from_micros(u64::try_from(time.num_microseconds())?))
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn lines(program: &str, arguments: &[&str]) -> Result<usize, Box<dyn Error>> {
    let output = Command::new(program).args(arguments).output()?;
    Ok(output.stdout.iter().filter(|&&octet| octet == b'\n').count())
}
