//! Counters, gauges and histograms, shown as Prometheus' text.
//!
//! A metric is registered once, at a start, and written to by atomics. Names are
//! `uc_<area>_<noun>_<unit>`, each with a help text; a name that is not is a bug, and panics at once.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// A new value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Up, or down when negative.
    pub fn add(&self, by: i64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// What it stands at.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a latency histogram, in seconds: doubling from 100 µs to 6.6 s.
const BOUNDS: [f64; 17] = {
    let mut bounds = [0.0; 17];
    let (mut index, mut bound) = (0, 0.0001);
    while index < bounds.len() {
        bounds[index] = bound;
        bound *= 2.0;
        index += 1;
    }
    bounds
};

#[derive(Debug, Default)]
struct Buckets {
    /// One for each bound, and one for what is above all of them.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// How often something took how long.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Buckets>);

impl Histogram {
    /// It took this long once more.
    pub fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn text(&self, name: &str, out: &mut String) {
        let mut total = 0;
        for (index, count) in self.0.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = BOUNDS.get(index).map_or("+Inf".into(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = Duration::from_nanos(self.0.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {total}");
    }
}

enum Kind {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Kind::Counter(_) => "counter",
            Kind::Gauge(_) => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
}

/// All metrics of a service.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Metric>>>);

impl Registry {
    /// A new counter, whose name ends in `_total`.
    ///
    /// # Panics
    /// When the name is taken or is no metric's name.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        assert!(name.ends_with("_total"), "{name} is a counter's name");
        let counter = Counter::default();
        self.register(name, help, Kind::Counter(counter.clone()));
        counter
    }

    /// A new gauge.
    ///
    /// # Panics
    /// When the name is taken or is no metric's name.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.register(name, help, Kind::Gauge(gauge.clone()));
        gauge
    }

    /// A new histogram of latencies, whose name ends in `_seconds`.
    ///
    /// # Panics
    /// When the name is taken or is no metric's name.
    pub fn histogram(&self, name: &'static str, help: &'static str) -> Histogram {
        assert!(name.ends_with("_seconds"), "{name} is a latency's name");
        let histogram = Histogram::default();
        self.register(name, help, Kind::Histogram(histogram.clone()));
        histogram
    }

    fn register(&self, name: &'static str, help: &'static str, kind: Kind) {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let parts = name.split('_').count();
        assert!(
            name.starts_with("uc_") && parts >= 4 && name.bytes().all(plain),
            "{name} is not uc_<area>_<noun>_<unit>"
        );
        let mut metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            metrics.iter().all(|metric| metric.name != name),
            "{name} is registered twice"
        );
        metrics.push(Metric { name, help, kind });
    }

    /// Everything as Prometheus reads it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Metric { name, help, kind } in metrics.iter() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
            match kind {
                Kind::Counter(counter) => {
                    let _ = writeln!(out, "{name} {}", counter.get());
                }
                Kind::Gauge(gauge) => {
                    let _ = writeln!(out, "{name} {}", gauge.get());
                }
                Kind::Histogram(histogram) => histogram.text(name, &mut out),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let registry = Registry::default();
        registry.counter("uc_test_calls_total", "Calls.").add(3);
        registry
            .gauge("uc_test_watchers_count", "Watchers.")
            .set(-2);
        let took = registry.histogram("uc_test_call_seconds", "How long calls took.");
        took.record(Duration::from_micros(50));
        took.record(Duration::from_mins(1));
        let text = registry.text();
        for line in [
            "# TYPE uc_test_calls_total counter",
            "uc_test_calls_total 3",
            "uc_test_watchers_count -2",
            "uc_test_call_seconds_bucket{le=\"0.0001\"} 1",
            "uc_test_call_seconds_bucket{le=\"+Inf\"} 2",
            "uc_test_call_seconds_sum 60.00005",
            "uc_test_call_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    #[should_panic(expected = "registered twice")]
    fn a_name_is_taken_once() {
        let registry = Registry::default();
        registry.gauge("uc_test_size_bytes", "Size.");
        registry.gauge("uc_test_size_bytes", "Size.");
    }
}
