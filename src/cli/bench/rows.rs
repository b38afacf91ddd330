//! Measurements → text.
#![forbid(unsafe_code)]

use crate::engine::bench::{BenchPath, MatchReport, PEERS, RxReport, Spread, TxReport};
use crate::io::xdp::Attached;
use crate::report::table::{grid_to_width, shown};
use comfy_table::Cell;
use serde::Serialize;

const SCHEMA: &str = "keepsweep/1";

/// What has been measured, path by path.
#[derive(Debug, Default)]
pub struct Rows {
    /// Sending.
    pub tx: Vec<TxReport>,
    /// Receiving.
    pub rx: Vec<RxReport>,
    /// Parsing and matching.
    pub matching: Option<MatchReport>,
}

/// How fast we send or receive, beside the barest loop. Field order is part of the format.
#[derive(Serialize)]
struct Speed {
    pps: Spread,
    cpu_ns_per_frame: Spread,
    bare_pps: Spread,
    bare_cpu_ns_per_frame: Spread,
    ratio_to_bare: Spread,
}

/// Field order is part of the format.
#[derive(Serialize)]
struct RxObject {
    schema: &'static str,
    r#type: &'static str,
    bench: &'static str,
    io: &'static str,
    xdp_mode: Option<&'static str>,
    peers: u32,
    rounds: usize,
    #[serde(flatten)]
    speed: Speed,
    ratio_to_packet: Option<f64>,
    frames_offered: u64,
    frames_received: u64,
    replies_matched: u64,
    replies_rejected: u64,
    bare_frames_received: u64,
    ring_dropped: u64,
    lost_before_ring: u64,
    off_cpu_ms: u64,
}

/// Field order is part of the format.
#[derive(Serialize)]
struct MatchObject {
    schema: &'static str,
    r#type: &'static str,
    bench: &'static str,
    peers: u32,
    rounds: usize,
    pps: Spread,
    cpu_ns_per_frame: Spread,
    parse_cpu_ns_per_frame: Spread,
    replies_matched: u64,
    replies_rejected: u64,
    off_cpu_ms: u64,
}

/// Field order is part of the format.
#[derive(Serialize)]
struct TxObject<'a> {
    schema: &'static str,
    r#type: &'static str,
    bench: &'static str,
    io: &'static str,
    interface: &'a str,
    /// What it is, if it is our own.
    interface_kind: Option<&'a str>,
    zerocopy: bool,
    peers: u32,
    rounds: usize,
    #[serde(flatten)]
    speed: Speed,
    craft_cpu_ns_per_frame: Spread,
    sender_cpu_ns_per_frame: Spread,
    sendto_pps: Option<Spread>,
    ratio_to_raw: Option<f64>,
    ratio_to_raw_sendto: Option<f64>,
    frames_sent: u64,
    frames_refused: u64,
    refusal: Option<&'a str>,
    bare_frames_sent: u64,
    interface_frames: u64,
    interface_drops: u64,
    off_cpu_ms: u64,
}

impl Speed {
    /// Frames a second, their range, and the time that each takes.
    fn own(&self) -> Vec<Cell> {
        vec![
            Cell::new(mpps(self.pps.median)),
            Cell::new(format!("{}-{}", mpps(self.pps.min), mpps(self.pps.max))),
            Cell::new(format!("{:.0}", self.cpu_ns_per_frame.median)),
        ]
    }

    /// The same of the barest loop, and what of its speed is ours.
    fn bare(&self) -> Vec<Cell> {
        vec![
            Cell::new(mpps(self.bare_pps.median)),
            Cell::new(format!("{:.0}", self.bare_cpu_ns_per_frame.median)),
            Cell::new(format!("{:.3}", self.ratio_to_bare.median)),
        ]
    }
}

impl Rows {
    /// Lays the measurements out for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        if !self.tx.is_empty() {
            text.push_str(&self.tx_table());
        }
        if !self.rx.is_empty() {
            text.push_str(&self.rx_table());
        }
        if let Some(report) = &self.matching {
            text.push_str(&match_table(report));
        }
        text
    }

    /// Writes one JSON object a line.
    pub fn ndjson(&self) -> String {
        let mut text = String::new();
        for report in &self.tx {
            // Numbers and strings only: there is nothing that could not be written.
            text.extend(serde_json::to_string(&self.tx_object(report)));
            text.push('\n');
        }
        for report in &self.rx {
            text.extend(serde_json::to_string(&self.rx_object(report)));
            text.push('\n');
        }
        if let Some(report) = &self.matching {
            text.extend(serde_json::to_string(&match_object(report)));
            text.push('\n');
        }
        text
    }

    fn rx_object(&self, report: &RxReport) -> RxObject {
        let packet = self.rx.iter().find(|report| report.path == BenchPath::Packet);
        let packet = packet.map(|packet| packet.pps.median).filter(|&pps| pps > 0.0);
        RxObject {
            schema: SCHEMA,
            r#type: "bench",
            bench: "rx",
            io: report.path.name(),
            xdp_mode: report.attached.map(Attached::name),
            peers: PEERS,
            rounds: report.rounds,
            speed: Speed {
                pps: report.pps,
                cpu_ns_per_frame: report.cpu_ns,
                bare_pps: report.bare_pps,
                bare_cpu_ns_per_frame: report.bare_cpu_ns,
                ratio_to_bare: report.ratio_to_bare,
            },
            ratio_to_packet: packet.map(|packet| report.pps.median / packet),
            frames_offered: report.offered,
            frames_received: report.received,
            replies_matched: report.matched,
            replies_rejected: report.rejected,
            bare_frames_received: report.bare_received,
            ring_dropped: report.ring_dropped,
            lost_before_ring: report.lost,
            off_cpu_ms: report.off_cpu.as_millis() as u64,
        }
    }

    fn rx_table(&self) -> String {
        let titles = [
            "IO",
            "REPLIES/S",
            "MIN-MAX",
            "NS EACH",
            "BARE LOOP/S",
            "NS EACH",
            "OF BARE",
            "OF PACKET",
            "OFFERED",
            "RING FULL",
            "LOST",
        ];
        let titles = titles.map(Cell::new).to_vec();
        let rows = self.rx.iter().map(|report| {
            let object = self.rx_object(report);
            let rest = vec![
                Cell::new(times(object.ratio_to_packet)),
                Cell::new(object.frames_offered),
                Cell::new(object.ring_dropped),
                Cell::new(object.lost_before_ring),
            ];
            [vec![Cell::new(object.io)], object.speed.own(), object.speed.bare(), rest].concat()
        });
        let grid = grid_to_width(std::iter::once(titles).chain(rows));
        let mut text = format!("{grid}\n\n");
        if self.rx.iter().any(|report| !report.two_cpus) {
            text.push_str("sent and received on the same CPU: there is only one\n");
        }
        text
    }

    /// Returns keepalives a second through raw sockets, and constant frames a second by `sendto`.
    fn raw(&self) -> (Option<f64>, Option<f64>) {
        let raw = self.tx.iter().find(|report| report.path == BenchPath::Raw);
        let positive = |spread: Spread| Some(spread.median).filter(|&pps| pps > 0.0);
        (
            raw.and_then(|raw| positive(raw.pps)),
            raw.and_then(|raw| raw.sendto_pps).and_then(positive),
        )
    }

    fn tx_object<'a>(&self, report: &'a TxReport) -> TxObject<'a> {
        let (raw, sendto) = self.raw();
        TxObject {
            schema: SCHEMA,
            r#type: "bench",
            bench: "tx",
            io: report.path.name(),
            interface: &report.interface.0,
            interface_kind: report.interface.1,
            zerocopy: report.zerocopy,
            peers: PEERS,
            rounds: report.rounds,
            speed: Speed {
                pps: report.pps,
                cpu_ns_per_frame: report.cpu_ns,
                bare_pps: report.bare_pps,
                bare_cpu_ns_per_frame: report.bare_cpu_ns,
                ratio_to_bare: report.ratio_to_bare,
            },
            craft_cpu_ns_per_frame: report.craft_ns,
            sender_cpu_ns_per_frame: report.sender_ns,
            sendto_pps: report.sendto_pps,
            ratio_to_raw: raw.map(|raw| report.pps.median / raw),
            ratio_to_raw_sendto: sendto.map(|sendto| report.pps.median / sendto),
            frames_sent: report.frames_sent,
            frames_refused: report.frames_refused.0,
            refusal: report.frames_refused.1.as_deref(),
            bare_frames_sent: report.bare_frames_sent,
            interface_frames: report.interface_frames,
            interface_drops: report.interface_drops,
            off_cpu_ms: report.off_cpu.as_millis() as u64,
        }
    }

    fn tx_table(&self) -> String {
        let titles = [
            "IO",
            "KEEPALIVES/S",
            "MIN-MAX",
            "NS EACH",
            "CRAFT",
            "BARE LOOP/S",
            "NS EACH",
            "OF BARE",
            "OF SENDTO",
            "SENDER",
            "REFUSED",
        ];
        let titles = titles.map(Cell::new).to_vec();
        let rows = self.tx.iter().map(|report| {
            let object = self.tx_object(report);
            let craft = vec![Cell::new(format!("{:.1}", object.craft_cpu_ns_per_frame.median))];
            let rest = vec![
                Cell::new(times(object.ratio_to_raw_sendto)),
                Cell::new(format!("{:.0}", object.sender_cpu_ns_per_frame.median)),
                Cell::new(object.frames_refused),
            ];
            let (own, bare) = (object.speed.own(), object.speed.bare());
            [vec![Cell::new(object.io)], own, craft, bare, rest].concat()
        });
        let grid = grid_to_width(std::iter::once(titles).chain(rows));
        let mut text = format!("{grid}\n\n");
        for report in &self.tx {
            if let Some(why) = &report.frames_refused.1 {
                text.push_str(&format!("{}: refused: {}\n", report.path.name(), shown(why)));
            }
        }
        text
    }
}

fn match_object(report: &MatchReport) -> MatchObject {
    MatchObject {
        schema: SCHEMA,
        r#type: "bench",
        bench: "match",
        peers: PEERS,
        rounds: report.rounds,
        pps: report.pps,
        cpu_ns_per_frame: report.cpu_ns,
        parse_cpu_ns_per_frame: report.parse_cpu_ns,
        replies_matched: report.matched,
        replies_rejected: report.rejected,
        off_cpu_ms: report.off_cpu.as_millis() as u64,
    }
}

fn match_table(report: &MatchReport) -> String {
    format!(
        "{:.0} ns a reply ({:.0}-{:.0}), {:.0} of them to parse it: {} a second on one core, of \
         {PEERS} flows\n",
        report.cpu_ns.median,
        report.cpu_ns.min,
        report.cpu_ns.max,
        report.parse_cpu_ns.median,
        mpps(report.pps.median),
    )
}

fn mpps(pps: f64) -> String {
    format!("{:.3} M", pps / 1e6)
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2} x"))
}
