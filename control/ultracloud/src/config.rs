//! The config file and the command line, checked once: [`Config`] is the only type that the rest of
//! the program sees.
//!
//! | key | default | allowed |
//! | --- | --- | --- |
//! | `roles` | `["lightningstor"]` | some of `lightningstor`, `coronafs`, `fiberlb` and `chainfire` |
//! | `shards.count` | all CPUs but one; all of them when there are at most 4 | 1 to 64 |
//! | `shards.pool_mib` | 48 | 8 to 65536, in MiB a shard |
//! | `admin.listen` | 127.0.0.1:9001 | an address and port |
//! | `admin.calls_max` | 512 | 1 to 1024: calls from the control layer to the shards in flight |
//! | `admin.calls_per_tenant_max` | 64 | 1 to 1024: the same of one tenant |
//! | `lightningstor.listen` | 127.0.0.1:9000 | an address and port |
//! | `lightningstor.region` | us-east-1 | 1 to 64 of `a-z0-9-` |
//! | `lightningstor.any_region` | true | whether signatures may name another region |
//! | `lightningstor.base_domain` | none | the domain whose subdomains are buckets |
//! | `lightningstor.connections_max` | 4096 | 1 to 60000 a shard |
//! | `lightningstor.body_cache_mib` | 256 | 0 to 65536, in MiB a shard: bodies past 64 KiB that are read again, in memory beside the pool; 0 for none |
//! | `lightningstor.partitions` | the number of shards at the first start | 1 to 1024; fixed then |
//! | `[[lightningstor.user]]` | none | `id` (the name, if not given), `name`, `access_key`, `secret_key`, and `token` for the API; one for each access key |
//! | `coronafs.partitions` | the number of shards at the first start | 1 to 1024; fixed then |
//! | `coronafs.socket_dir` | coronafs/sockets in the data directory | a directory with a path of up to 64 bytes |
//! | `coronafs.master_key_file` | coronafs-master-key in the data directory, made at the first start | a file with 64 hexadecimal digits that only its owner can read |
//! | `coronafs.scrub_bytes_per_s` | 0: off | bytes a second and partition that are compared with their checksums in the background |
//! | `coronafs.image_bytes_per_s` | 104857600 | bytes a second and partition that are fetched in the background for volumes from images; 0 is no limit |
//! | `[coronafs.nbd_tls]` | none | `cert`, `key` and `ca`: PEM files, for NBD at an address |
//! | `[coronafs.remote_tls]` | none | `cert`, `key` and `ca`: PEM files, shown to and asked of other nodes whose volumes are served here |
//! | `fiberlb.interfaces` | none | names of interfaces whose packets are balanced; without any the tables are kept and nothing is attached |
//! | `fiberlb.attach` | auto | `native` (XDP in the driver), `generic` (XDP after it), `tc` (traffic control: `dnat` and `direct` alone, no SYN cookies); `auto` takes the first that an interface can |
//! | `fiberlb.pin_dir` | /sys/fs/bpf/ultracloud/fiberlb | a directory of a bpffs, where flows outlive the process; "" for none |
//! | `fiberlb.detach_on_stop` | false | whether a stop takes the program and its flows away |
//! | `fiberlb.object` | `ULTRACLOUD_FIBERLB_OBJECT`, else /usr/lib/ultracloud/fiberlb.o | the program that `cargo xtask bpf` builds |
//! | `fiberlb.flows_max` | 1048576 | 1024 to 67108864 flows that are remembered; fixed while they are pinned |
//! | `fiberlb.flow_idle_s` | 900 | 10 to 604800 seconds until a flow that nobody uses is forgotten |
//! | `fiberlb.new_flows_per_s` | 0: no limit | new flows a second and CPU that are remembered |
//! | `fiberlb.syn_cookies_above_per_s` | `new_flows_per_s`, else 10000 | new flows of TCP a second, CPU and VIP above which a source has to prove that it is there; 0 is never |
//! | `fiberlb.tunnel_source_v4`, `fiberlb.tunnel_source_v6` | none | sources of outer headers, for the modes `ipip` and `gue` |
//! | `fiberlb.tunnel_ends` | none | addresses of this machine at which tunnels of load balancers end, as a backend's |
//! | `fiberlb.tunnel_end_interfaces` | none | interfaces by which those tunnels come in; none of `interfaces` |
//! | `fiberlb.gue_port` | 6080 | 1 to 65535 |
//! | `chainfire.name` | default | the member's name |
//! | `chainfire.listen` | 127.0.0.1:2379 | an address and port for clients |
//! | `chainfire.peer_listen` | 127.0.0.1:2380 | an address and port for other members |
//! | `chainfire.advertise_client_urls` | what it listens on | URLs that clients are told |
//! | `chainfire.advertise_peer_url` | what it listens on | the URL that other members are told |
//! | `chainfire.initial_cluster` | this member alone | `name=URL` of each first member, commas between |
//! | `chainfire.initial_cluster_state` | new | `new`, or `existing` for a member that was added |
//! | `chainfire.initial_cluster_token` | ultracloud | tells clusters of the same members apart |
//! | `chainfire.quota_mib` | 2048 | 16 to 65536, in MiB of keys and values with history |
//! | `[chainfire.client_tls]`, `[chainfire.peer_tls]` | none | `cert`, `key` and `ca`: PEM files; with `ca`, the other side has to show a certificate |
//!
//! Unknown keys are errors. A variable of the environment, as `ULTRACLOUD_SHARDS__COUNT` for `shards.count`,
//! wins over the file, and the command line over both.

mod chainfire_part;
mod coronafs_part;
mod fiberlb_part;
mod users;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use chainfire::node::ChainfireConfig;
use clap::ValueEnum;
use control_kit::auth::Tokens;
use control_kit::config::{Layers, Source};
use lightningstor::access::ROOT_ID;
use lightningstor::http::{HttpConfig, Limits, User, Users};
use lightningstor::node::NodeConfig;
use lightningstor::store::StoreConfig;
use s3_wire::request::HostConfig;
use s3_wire::sigv4::RegionPolicy;
use serde::Deserialize;
use shard_bridge::Limits as BridgeLimits;
use toml::Spanned;

use self::chainfire_part::RawChainfire;
use self::coronafs_part::{CoronaFsPart, RawCoronaFs};
use self::fiberlb_part::RawFiberLb;
use self::users::{RawUser, UserToken};
use crate::NodeArgs;
use crate::credentials::RootCredentials;

/// Variables of the environment that are keys begin so.
const ENVIRONMENT: &str = "ULTRACLOUD_";
const S3_LISTEN: &str = "127.0.0.1:9000";
const ADMIN_LISTEN: &str = "127.0.0.1:9001";
const REGION: &str = "us-east-1";
const POOL_MIB: u64 = 48;
const BODY_CACHE_MIB: u64 = 256;
/// Up to this many CPUs, shards use them all and share them with the control layer.
const SMALL_MACHINE_CPUS: usize = 4;
const SHARDS_MAX: usize = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    roles: Option<Spanned<Vec<Role>>>,
    shards: RawShards,
    admin: RawAdmin,
    lightningstor: RawLightningStor,
    coronafs: RawCoronaFs,
    fiberlb: RawFiberLb,
    chainfire: RawChainfire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawShards {
    count: Option<Spanned<usize>>,
    pool_mib: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAdmin {
    listen: Option<SocketAddr>,
    calls_max: Option<Spanned<usize>>,
    calls_per_tenant_max: Option<Spanned<usize>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLightningStor {
    listen: Option<SocketAddr>,
    region: Option<Spanned<String>>,
    any_region: Option<bool>,
    base_domain: Option<Spanned<String>>,
    connections_max: Option<Spanned<usize>>,
    body_cache_mib: Option<Spanned<u64>>,
    partitions: Option<Spanned<u16>>,
    user: Vec<RawUser>,
}

/// What a node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Objects, over S3.
    #[value(name = "lightningstor")]
    LightningStor,
    /// Volumes, over vhost-user.
    #[value(name = "coronafs")]
    CoronaFs,
    /// Packets to virtual addresses, by XDP.
    #[value(name = "fiberlb")]
    FiberLb,
    /// Coordination, over etcd's API.
    Chainfire,
}

/// Everything that the node does by.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it serves; never empty.
    pub roles: BTreeSet<Role>,
    /// ChainFire's part, for a node with that role.
    pub chainfire: ChainfireConfig,
    /// CoronaFS's part, for a node with that role.
    pub coronafs: CoronaFsPart,
    /// FiberLB's part, for a node with that role.
    pub fiberlb: balancers::NodeConfig,
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// Number of shards.
    pub shards: usize,
    /// Bytes of a shard's buffer pool.
    pub pool_bytes: usize,
    /// Where health and metrics are served.
    pub admin_listen: SocketAddr,
    /// Bounds of the control layer's calls to the shards.
    pub bridge: BridgeLimits,
    /// The S3 front but for its users.
    http: HttpConfig,
    users: Vec<User>,
    tokens: Vec<UserToken>,
    partitions: Option<u16>,
    body_cache_bytes: u64,
}

impl Config {
    /// Where S3 is served.
    pub fn s3_listen(&self) -> SocketAddr {
        self.http.listen
    }

    /// Reads the file, if one is named, and puts it together with the command line.
    ///
    /// # Errors
    /// What is wrong, with file, line and column.
    pub fn load(args: &NodeArgs) -> Result<Config> {
        let (text, path) = match &args.config {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let unreadable = || format!("cannot read the config file {}", path.display());
                (text.with_context(unreadable)?, path.clone())
            }
            None => Default::default(),
        };
        // A variable that is no text is no key of a config either.
        let variables = std::env::vars_os();
        let variables = variables.filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        parse(args, &Layers::new(text, path, ENVIRONMENT, variables))
    }

    /// Who may call the node's API: the users, by their tokens, and root by this one.
    pub fn tokens(&self, root: &str) -> Tokens {
        users::authenticate(&self.tokens, root)
    }

    /// Whether the node has shards.
    pub fn has_shards(&self) -> bool {
        self.roles.iter().any(|role| *role != Role::Chainfire)
    }

    /// What LightningStor is told, with the root user added.
    ///
    /// # Errors
    /// When a user of the file has the root user's access key.
    pub fn lightningstor(&self, root: &RootCredentials) -> Result<NodeConfig> {
        let mut users = vec![User {
            id: ROOT_ID.into(),
            name: ROOT_ID.into(),
            access_key: root.access_key.as_str().into(),
            secret_key: root.secret_key.as_str().into(),
        }];
        users.extend(self.users.iter().cloned());
        let users = Users::new(users).context("[[lightningstor.user]]")?;
        Ok(NodeConfig {
            data_dir: self.data_dir.clone(),
            partitions: self.partitions.unwrap_or(self.shards as u16),
            http: HttpConfig {
                users,
                ..self.http.clone()
            },
            store: StoreConfig {
                body_cache_bytes_max: self.body_cache_bytes,
                ..StoreConfig::default()
            },
        })
    }
}

fn parse(args: &NodeArgs, layers: &Layers) -> Result<Config> {
    let raw: RawConfig = layers.read()?;
    raw.validate(args, layers.source())
}

impl RawConfig {
    fn validate(self, args: &NodeArgs, source: Source<'_>) -> Result<Config> {
        let roles = roles(self.roles, args, source)?;
        let chainfire = chainfire_part::validate(self.chainfire, args, source)?;
        let coronafs = coronafs_part::validate(self.coronafs, &args.data_dir, source)?;
        let fiberlb = fiberlb_part::validate(self.fiberlb, &args.data_dir, source)?;
        let cpus = engine::allowed_cpus().len();
        let count = self.shards.count;
        let shards = source.number(
            count,
            default_shards(cpus),
            1..SHARDS_MAX + 1,
            "shards.count",
        )?;
        let pool = self.shards.pool_mib;
        let pool_mib = source.number(pool, POOL_MIB, 8..65_537, "shards.pool_mib")?;
        let pool_bytes = (pool_mib << 20) as usize;
        let lightningstor = self.lightningstor;
        let limits = Limits::default();
        let connections = lightningstor.connections_max;
        let connections_max = source.number(
            connections,
            limits.connections_max,
            1..60_001,
            "lightningstor.connections_max",
        )?;
        let limits = Limits {
            connections_max,
            buffer_bytes_max: (pool_bytes / 2) as u64,
            ..limits
        };
        let body_cache = lightningstor.body_cache_mib;
        let key = "lightningstor.body_cache_mib";
        let body_cache_mib = source.number(body_cache, BODY_CACHE_MIB, 0..65_537, key)?;
        let partitions = match lightningstor.partitions {
            None => None,
            raw => Some(source.number(raw, 1, 1..1025, "lightningstor.partitions")?),
        };
        let region = region(lightningstor.region, source)?;
        let policy = match lightningstor.any_region {
            Some(false) => RegionPolicy::Exactly(region.clone()),
            None | Some(true) => RegionPolicy::Any,
        };
        let listen = args.s3_listen.or(lightningstor.listen);
        let (users, tokens) = users::users(lightningstor.user, source)?;
        Ok(Config {
            roles,
            chainfire,
            coronafs,
            fiberlb,
            data_dir: args.data_dir.clone(),
            shards,
            pool_bytes,
            admin_listen: address(args.admin_listen.or(self.admin.listen), ADMIN_LISTEN)?,
            bridge: bridge(self.admin, source)?,
            http: HttpConfig {
                listen: address(listen, S3_LISTEN)?,
                region,
                region_policy: policy,
                hosts: HostConfig {
                    base_domain: base_domain(lightningstor.base_domain, source)?,
                },
                users: Users::default(),
                limits,
            },
            users,
            tokens,
            partitions,
            body_cache_bytes: body_cache_mib << 20,
        })
    }
}

fn roles(
    raw: Option<Spanned<Vec<Role>>>,
    args: &NodeArgs,
    source: Source<'_>,
) -> Result<BTreeSet<Role>> {
    if !args.roles.is_empty() {
        return Ok(args.roles.iter().copied().collect());
    }
    match raw {
        None => Ok(BTreeSet::from([Role::LightningStor])),
        Some(raw) if raw.get_ref().is_empty() => source.refuse(
            &raw.span(),
            "roles is empty; name some of lightningstor, coronafs, fiberlb and chainfire",
        ),
        Some(raw) => Ok(raw.into_inner().into_iter().collect()),
    }
}

fn bridge(raw: RawAdmin, source: Source<'_>) -> Result<BridgeLimits> {
    let number = |raw, default, key| source.number(raw, default, 1..1025, key);
    let default = BridgeLimits::default();
    let tenants = default.calls_per_tenant_max;
    Ok(BridgeLimits {
        calls_max: number(raw.calls_max, default.calls_max, "admin.calls_max")?,
        calls_per_tenant_max: number(
            raw.calls_per_tenant_max,
            tenants,
            "admin.calls_per_tenant_max",
        )?,
    })
}

fn default_shards(cpus: usize) -> usize {
    if cpus <= SMALL_MACHINE_CPUS {
        cpus.max(1)
    } else {
        (cpus - 1).min(SHARDS_MAX)
    }
}

fn address(given: Option<SocketAddr>, default: &str) -> Result<SocketAddr> {
    match given {
        Some(address) => Ok(address),
        None => Ok(default.parse()?),
    }
}

fn region(raw: Option<Spanned<String>>, source: Source<'_>) -> Result<Box<str>> {
    let Some(raw) = raw else {
        return Ok(REGION.into());
    };
    let name = raw.get_ref();
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !plain || !(1..=64).contains(&name.len()) {
        let what = "lightningstor.region has 1 to 64 characters out of a-z, 0-9 and -";
        return source.refuse(&raw.span(), what);
    }
    Ok(name.as_str().into())
}

fn base_domain(raw: Option<Spanned<String>>, source: Source<'_>) -> Result<Option<Box<str>>> {
    let Some(raw) = raw else { return Ok(None) };
    let name = raw.get_ref().to_ascii_lowercase();
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    if name.len() > 253 || !name.split('.').all(label) {
        let what = "lightningstor.base_domain is a domain name without port, as s3.example.org";
        return source.refuse(&raw.span(), what);
    }
    Ok(Some(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChainfireArgs, LogFormat};

    fn args() -> NodeArgs {
        NodeArgs {
            data_dir: "data".into(),
            config: None,
            s3_listen: None,
            admin_listen: None,
            log_format: LogFormat::Text,
            roles: Vec::new(),
            chainfire: ChainfireArgs::default(),
        }
    }

    fn layers(text: &str) -> Layers {
        Layers::new(text, "node.toml", ENVIRONMENT, [])
    }

    fn load(text: &str) -> Result<Config> {
        parse(&args(), &layers(text))
    }

    fn root() -> RootCredentials {
        RootCredentials {
            access_key: "ROOT".into(),
            secret_key: "secret".into(),
        }
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.admin_listen.to_string(), ADMIN_LISTEN);
        assert_eq!(config.shards, default_shards(engine::allowed_cpus().len()));
        assert_eq!(config.pool_bytes, 48 << 20);
        let node = config.lightningstor(&root()).unwrap();
        assert_eq!(node.http.listen.to_string(), S3_LISTEN);
        assert_eq!(usize::from(node.partitions), config.shards);
        assert_eq!(node.store.body_cache_bytes_max, 256 << 20);
    }

    #[test]
    fn every_key_is_taken_and_the_command_line_wins() {
        let text = "[shards]\ncount = 3\npool_mib = 16\n[admin]\nlisten = \"[::1]:1\"\n\
            calls_max = 9\ncalls_per_tenant_max = 3\n\
            [lightningstor]\nlisten = \"0.0.0.0:80\"\nregion = \"eu-1\"\nany_region = false\n\
            base_domain = \"S3.example.org\"\nconnections_max = 7\nbody_cache_mib = 5\n\
            partitions = 9\n\
            [[lightningstor.user]]\nname = \"backup\"\naccess_key = \"BACKUP\"\nsecret_key = \"longenough\"\n";
        let config = load(text).unwrap();
        assert_eq!((config.shards, config.pool_bytes), (3, 16 << 20));
        assert_eq!(config.admin_listen.to_string(), "[::1]:1");
        let bridge = BridgeLimits {
            calls_max: 9,
            calls_per_tenant_max: 3,
        };
        assert_eq!(config.bridge, bridge);
        let node = config.lightningstor(&root()).unwrap();
        assert_eq!(node.partitions, 9);
        assert_eq!(node.http.listen.to_string(), "0.0.0.0:80");
        assert_eq!(
            node.http.region_policy,
            RegionPolicy::Exactly("eu-1".into())
        );
        assert_eq!(
            node.http.hosts.base_domain.as_deref(),
            Some("s3.example.org")
        );
        assert_eq!(node.http.limits.connections_max, 7);
        assert_eq!(node.store.body_cache_bytes_max, 5 << 20);
        let given = NodeArgs {
            s3_listen: "127.0.0.1:0".parse().ok(),
            ..args()
        };
        let config = parse(&given, &layers(text)).unwrap();
        assert_eq!(config.http.listen.port(), 0);
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_column() {
        for (text, parts) in [
            ("[shards]\ncuont = 1\n", &["line 2, column 1", "cuont"][..]),
            (
                "[shards]\ncount = 0\n",
                &["line 2, column 9", "shards.count is 0"],
            ),
            ("[shards]\ncount = \"2\"\n", &["line 2, column 9"]),
            (
                "[shards]\npool_mib = 4\n",
                &["line 2", "shards.pool_mib is 4"],
            ),
            (
                "[lightningstor]\nregion = \"EU\"\n",
                &["line 2, column 10", "region"],
            ),
            (
                "[lightningstor]\nbase_domain = \"a:1\"\n",
                &["line 2", "base_domain"],
            ),
            ("[lightningstor]\nlisten = \"nowhere\"\n", &["line 2"]),
            (
                "\n[[lightningstor.user]]\nname = \"a b\"\naccess_key = \"abc\"\nsecret_key = \"12345678\"\n",
                &["line 3, column 8", "name"],
            ),
            (
                "[[lightningstor.user]]\nname = \"a\"\naccess_key = \"a/b\"\nsecret_key = \"12345678\"\n",
                &["line 3, column 14", "access key"],
            ),
            (
                "[[lightningstor.user]]\nname = \"a\"\naccess_key = \"abc\"\nsecret_key = \"short\"\n",
                &["line 4", "secret_key"],
            ),
            (
                "[[lightningstor.user]]\nid = \"root\"\nname = \"a\"\naccess_key = \"abc\"\nsecret_key = \"12345678\"\n",
                &["line 2, column 6", "id root"],
            ),
            (
                "[[lightningstor.user]]\nname = \"root\"\naccess_key = \"abc\"\nsecret_key = \"12345678\"\n",
                &["line 2, column 8", "id root"],
            ),
            (
                "[[lightningstor.user]]\nname = \"a\"\naccess_key = \"abc\"\nsecret_key = \"12345678\"\ntoken = \"short\"\n",
                &["line 5, column 9", "16 to 256"],
            ),
            (
                "[admin]\ncalls_max = 0\n",
                &["line 2, column 13", "admin.calls_max is 0"],
            ),
            ("nonsense", &["line 1"]),
        ] {
            let error = format!("{:#}", load(text).unwrap_err());
            for part in ["node.toml"].iter().chain(parts) {
                assert!(
                    error.contains(part),
                    "{text:?} gives {error:?}, without {part:?}"
                );
            }
        }
    }

    #[test]
    fn an_access_key_has_one_user_also_beside_root() {
        let user = "[[lightningstor.user]]\nname = \"a\"\naccess_key = \"ROOT\"\nsecret_key = \"12345678\"\n";
        assert!(load(user).unwrap().lightningstor(&root()).is_err());
        let error = load(&user.repeat(2)).unwrap_err().to_string();
        assert!(error.contains("line 7"), "{error}");
    }

    #[test]
    fn a_user_has_one_identity_and_may_have_several_keys() {
        let user = |id: &str, name: &str, key: &str| {
            format!(
                "[[lightningstor.user]]\n{id}\nname = \"{name}\"\naccess_key = \"{key}\"\nsecret_key = \"12345678\"\n"
            )
        };
        let first = user("id = \"u-17\"", "backup", "KEY1");
        let second = user("id = \"u-17\"", "backup", "KEY2");
        let without = user("", "plain", "KEY3");
        let config = load(&(first.clone() + &second + &without)).unwrap();
        let ids: Vec<&str> = config.users.iter().map(|user| &*user.id).collect();
        assert_eq!(ids, ["u-17", "u-17", "plain"]);
        config.lightningstor(&root()).unwrap();
        let renamed = user("id = \"u-17\"", "other", "KEY2");
        let error = load(&(first + &renamed)).unwrap_err().to_string();
        assert!(
            error.contains("line 7") && error.contains("another name"),
            "{error}"
        );
    }

    #[test]
    fn a_small_machine_gives_every_cpu_a_shard() {
        for (cpus, shards) in [(0, 1), (1, 1), (2, 2), (4, 4), (5, 4), (8, 7), (200, 64)] {
            assert_eq!(default_shards(cpus), shards, "{cpus} CPUs");
        }
    }
}
