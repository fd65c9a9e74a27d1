//! Compiles `proto/`.

use std::error::Error;

/// Fields that hold a name.
const NAMES: [&str; 5] = [
    "LoadBalancer.name",
    "Listener.name",
    "Pool.name",
    "Backend.name",
    "DeleteLoadBalancerRequest.name",
];
const OTHERS: [(&str, &str); 9] = [
    ("Listener.port", "maximum = 65535"),
    ("Backend.port", "maximum = 65535"),
    ("Backend.weight", "maximum = 1000"),
    ("Backend.quic_server", "maximum = 65536"),
    ("Pool.slow_start_s", "maximum = 3600"),
    ("Pool.panic_threshold_percent", "maximum = 100"),
    ("HealthCheck.interval_ms", "maximum = 3600000"),
    ("HealthCheck.timeout_ms", "maximum = 60000"),
    ("ListLoadBalancersRequest.limit", "maximum = 1000"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let names = NAMES.map(|field| (field, "min_length = 1, max_length = 63"));
    let full: Vec<(String, &str)> = names
        .into_iter()
        .chain(OTHERS)
        .map(|(field, says)| (format!("ultracloud.fiberlb.v1.{field}"), says))
        .collect();
    let constraints: Vec<(&str, &str)> = full.iter().map(|(f, says)| (f.as_str(), *says)).collect();
    api_build::compile(
        &["ultracloud/fiberlb/v1/load_balancers.proto"],
        &constraints,
    )
}
