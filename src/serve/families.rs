//! Samples on their way to Prometheus's text form.

use std::collections::BTreeMap;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::printable::printable;
use crate::serve::catalogue::{METRICS, MetricFamilyRow};
use crate::serve::figures::{BOUNDS, Spread};

#[derive(Debug, Default)]
pub(crate) struct Families(BTreeMap<&'static str, Vec<Metric>>);

impl Families {
    /// One sample. A name that is not in the catalogue is left out: a test sees to it that there is none.
    #[allow(clippy::cast_precision_loss)] // Counts beyond 2^53 do not come up.
    pub(crate) fn put(&mut self, name: &'static str, labels: &[&str], value: f64) {
        let Some(row) = row(name) else { return };
        let mut metric = Metric::from_label(pairs(row, labels));
        if row.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.0.entry(name).or_default().push(metric);
    }

    pub(crate) fn spread(&mut self, name: &'static str, labels: &[&str], spread: &Spread) {
        let Some(row) = row(name) else { return };
        let mut histogram = Histogram::default();
        let mut below = 0;
        let buckets = BOUNDS.iter().zip(spread.buckets).map(|(bound, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(spread.count);
        histogram.set_sample_sum(spread.sum);
        let mut metric = Metric::from_label(pairs(row, labels));
        metric.set_histogram(histogram);
        self.0.entry(name).or_default().push(metric);
    }

    /// In the order of the catalogue.
    pub(crate) fn text(mut self) -> String {
        let family = |row: &MetricFamilyRow| {
            let metrics = self.0.remove(row.name)?;
            let mut family = MetricFamily::default();
            family.set_name(row.name.to_owned());
            family.set_help(row.help.to_owned());
            family.set_field_type(row.kind);
            family.set_metric(metrics);
            Some(family)
        };
        let families: Vec<MetricFamily> = METRICS.iter().filter_map(family).collect();
        // It fails on a family without a name or without samples alone.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

fn row(name: &str) -> Option<&'static MetricFamilyRow> {
    METRICS.iter().find(|row| row.name == name)
}

/// Values are of others' choosing, names of members for one.
fn pairs(row: &MetricFamilyRow, values: &[&str]) -> Vec<LabelPair> {
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(printable(value).into_owned());
        pair
    };
    row.labels.iter().zip(values).map(pair).collect()
}
