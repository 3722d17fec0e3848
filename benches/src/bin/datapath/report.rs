//! Figures by method, and the tables made of them.

use std::collections::BTreeMap;

use flannel_benches::stats::Sample;

use crate::bed::Method;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    Tcp1,
    Tcp4,
    CpuPerGb1,
    CpuPerGb4,
    Retransmits1,
    Retransmits4,
    SmallOffered,
    Small,
    CpuPerMillion,
    Rtt,
}

impl Figure {
    const ALL: [Self; 10] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::CpuPerGb1,
        Self::CpuPerGb4,
        Self::Retransmits1,
        Self::Retransmits4,
        Self::Small,
        Self::SmallOffered,
        Self::CpuPerMillion,
        Self::Rtt,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, 1 stream, Gbit/s",
            Self::Tcp4 => "TCP, 4 streams, Gbit/s",
            Self::CpuPerGb1 => "processor seconds per GB, 1 stream",
            Self::CpuPerGb4 => "processor seconds per GB, 4 streams",
            Self::Retransmits1 => "TCP retransmits, 1 stream",
            Self::Retransmits4 => "TCP retransmits, 4 streams",
            Self::SmallOffered => "64-byte UDP offered, kpps",
            Self::Small => "64-byte UDP received, kpps",
            Self::CpuPerMillion => "processor seconds per million packets received",
            Self::Rtt => "round trip, median, µs",
        }
    }

    /// Costs per unit of work move little with what others do, so they count all runs.
    fn counts_loaded_runs(self) -> bool {
        matches!(self, Self::CpuPerGb1 | Self::CpuPerGb4 | Self::CpuPerMillion)
    }
}

/// All figures of one underlay.
pub(crate) struct Report {
    quiet: f64,
    runs: BTreeMap<(Figure, Method), Vec<(f64, f64)>>,
}

impl Report {
    pub(crate) fn new(quiet: f64) -> Self {
        Self { quiet, runs: BTreeMap::new() }
    }

    /// Adds a figure, taken while others used this share of the processor.
    pub(crate) fn note(&mut self, method: Method, figure: Figure, value: f64, foreign: f64) {
        self.runs.entry((figure, method)).or_default().push((value, foreign));
    }

    fn sample(&self, figure: Figure, method: Method) -> Sample {
        let runs = self.runs.get(&(figure, method)).into_iter().flatten();
        let counts = |foreign: f64| figure.counts_loaded_runs() || foreign < self.quiet;
        runs.filter(|(_, foreign)| counts(*foreign)).map(|(value, _)| *value).collect()
    }

    pub(crate) fn print(&self, methods: &[Method]) {
        let measured = |figure: &Figure| self.runs.keys().any(|(noted, _)| noted == figure);
        for figure in Figure::ALL.into_iter().filter(measured) {
            println!("### {}\n", figure.title());
            println!("| method | median (min..max, n) | / naive | / vxlan | / udp |");
            println!("|---|---|---|---|---|");
            for method in methods {
                let sample = self.sample(figure, *method);
                let over = |other: Method| {
                    let ratio = sample.median() / self.sample(figure, other).median();
                    if ratio.is_finite() { format!("{ratio:.2}") } else { "-".to_owned() }
                };
                let [naive, vxlan, udp] = [Method::Naive, Method::Vxlan, Method::Udp].map(over);
                println!("| {method} | {sample:.2} | {naive} | {vxlan} | {udp} |");
            }
            println!();
        }
        let foreign: Sample = self.runs.values().flatten().map(|(_, foreign)| foreign * 100.0).collect();
        println!(
            "processor used by others, of all runs: {foreign:.0} %; quiet is below {:.0} %",
            self.quiet * 100.0
        );
    }
}
