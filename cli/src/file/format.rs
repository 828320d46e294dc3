//! What a file may say, as JSON Schema has it too.

use std::fmt;

use clap::ValueEnum;
use kvpn_proto::{Failure, Reason};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Source;
use crate::commands::connect::TransportChoice;
use crate::commands::intercept::OnFailure;
use crate::environment::Syntax;

/// What `kvpn up` brings up together
///
/// Strings may have ${NAME} and ${NAME:-default} in them, of the environment of kvpn, and $$
/// for a dollar. Paths start from the directory of the file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(title = "kvpn.yaml")]
pub(super) struct Document {
    /// Connections to make; without any, one to the kubeconfig's current context. Each key is
    /// the option of `kvpn connect` of that name.
    pub(super) connections: Vec<Connection>,
    /// Workloads to engage, and what runs on this laptop meanwhile. Each key is the option of
    /// the verb of that name.
    pub(super) engagements: Vec<Engagement>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Connection {
    /// Name of the connection, where there are several
    pub(super) name: Option<Text>,
    /// Path of the kubeconfig
    pub(super) kubeconfig: Option<Text>,
    /// Context of the kubeconfig
    pub(super) context: Option<Text>,
    /// Namespace to work in
    pub(super) namespace: Option<Text>,
    /// Namespace of the traffic manager
    pub(super) manager_namespace: Option<Text>,
    /// Way to the traffic manager
    #[schemars(schema_with = "choice::<TransportChoice>")]
    pub(super) transport: Option<Text>,
    /// Suffixes of names that the cluster answers for, such as corp.example
    pub(super) dns_include: Vec<Text>,
    /// Suffixes of names that are left to the laptop's own name servers
    pub(super) dns_exclude: Vec<Text>,
    /// Names that get the answers of another, such as db.example.com=postgres.shop
    pub(super) dns_mapping: Vec<Text>,
    /// Subnets to route to the cluster besides its own
    pub(super) also_proxy: Vec<Text>,
    /// Subnets never to route to the cluster
    pub(super) never_proxy: Vec<Text>,
    /// Subnets to route to the cluster although the laptop has another route to them
    pub(super) allow_conflicting_subnets: Vec<Text>,
    /// Subnets of the cluster to have at other addresses, or `all`
    pub(super) vnat: Vec<Text>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(transform = one_verb)]
pub(super) struct Engagement {
    /// Workload (NAME or KIND/NAME) whose connections are handed to local ports
    pub(super) intercept: Option<Text>,
    /// Workload whose connections are copied to local ports
    pub(super) wiretap: Option<Text>,
    /// Workload whose container stands still meanwhile
    pub(super) replace: Option<Text>,
    /// Workload whose environment is wanted, and none of its traffic
    pub(super) ingest: Option<Text>,
    /// Name of the connection, where the file has several
    pub(super) connection: Option<Text>,
    /// Namespace of the workload, where it is not the connection's
    pub(super) namespace: Option<Text>,
    /// Local ports, each with the Service's or container's: LOCAL[:REMOTE]
    pub(super) ports: Vec<Text>,
    /// Address on which the local ports listen
    pub(super) address: Option<Text>,
    /// Local ports that lead to the localhost of a pod: LOCAL[:POD-PORT]
    pub(super) to_pod: Vec<Text>,
    /// How long to wait until it is active, such as 90s or 2m
    pub(super) timeout: Option<Text>,
    /// Which requests; without it, all connections
    pub(super) filter: Filter,
    /// How clients' TLS is ended, so that the filter can look inside
    pub(super) tls: Tls,
    /// Who answers when this laptop does not
    #[schemars(schema_with = "choice::<OnFailure>")]
    pub(super) on_failure: Option<Text>,
    /// Roll the workload out once where the cluster refuses the agent to running pods
    pub(super) rollout: bool,
    /// Container that is meant
    pub(super) container: Option<Text>,
    /// What becomes of the container's environment
    pub(super) env: Env,
    /// Directory to mount the container's volumes at, as PATH[:ro]; `true` chooses one, and
    /// `false` mounts none for a command either
    #[schemars(schema_with = "place")]
    pub(super) mount: Option<Text>,
    /// Mount the container's whole file system, rather than its volumes
    pub(super) root_fs: bool,
    /// Command to run with the container's environment: a list of words, or a line for `sh`.
    /// `kvpn up` ends with the first one that ends
    pub(super) run: Option<Run>,
    /// Directory that the command runs in
    pub(super) directory: Option<Text>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Filter {
    /// Headers: NAME=VALUE, NAME~=PATTERN, or NAME for any value
    pub(super) headers: Vec<Text>,
    /// Paths: /PATH, /PATH/* for all below it, or ~=PATTERN
    pub(super) paths: Vec<Text>,
    /// Methods, such as POST
    pub(super) methods: Vec<Text>,
    /// Parameters of the query, written as headers are
    pub(super) query: Vec<Text>,
    /// Requests that fit one of these, not all of them
    pub(super) any: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Tls {
    /// File of a certificate that the workload's clients trust, with its chain; PEM
    pub(super) cert: Option<Text>,
    /// File of its key; PEM
    pub(super) key: Option<Text>,
    /// Secret of the workload's namespace that has both
    pub(super) secret: Option<Text>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Env {
    /// File to write it to
    pub(super) file: Option<Text>,
    /// Who reads that file
    #[schemars(schema_with = "choice::<Syntax>")]
    pub(super) syntax: Option<Text>,
    /// File to write it to as a JSON object
    pub(super) json: Option<Text>,
    /// Variables to leave out, by their names or patterns with * and ?
    pub(super) exclude: Vec<Text>,
}

/// A string, or a number or a truth value that is written as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Text, E> {
        Ok(Text(truth.to_string()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Text, E> {
        Ok(Text(number.to_string()))
    }
}

impl JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "integer"]})
    }
}

/// What is run.
#[derive(Debug)]
pub(super) enum Run {
    Words(Vec<Text>),
    /// For `sh -c`.
    Line(Text),
}

impl<'de> Deserialize<'de> for Run {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RunVisitor)
    }
}

struct RunVisitor;

impl<'de> Visitor<'de> for RunVisitor {
    type Value = Run;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of words, or a line for `sh`")
    }

    fn visit_str<E: Error>(self, line: &str) -> Result<Run, E> {
        Ok(Run::Line(Text(line.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Run, A::Error> {
        let mut words = Vec::new();
        while let Some(word) = seq.next_element()? {
            words.push(word);
        }
        Ok(Run::Words(words))
    }
}

impl JsonSchema for Run {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Run".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let word = generator.subschema_for::<Text>();
        json_schema!({"anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": word, "minItems": 1},
        ]})
    }
}

/// One of the values of an option, or what a variable has in it.
fn choice<T: ValueEnum>(_: &mut SchemaGenerator) -> Schema {
    let values = T::value_variants().iter();
    let values = values.filter_map(ValueEnum::to_possible_value);
    let mut names: Vec<serde_json::Value> = Vec::new();
    for value in values {
        names.push(value.get_name().into());
        // As YAML reads it without quotes.
        names.extend(value.get_name().parse::<u64>().ok().map(Into::into));
    }
    json_schema!({"anyOf": [{"enum": names}, {"type": "string", "pattern": r"\$\{"}]})
}

fn place(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "boolean"]})
}

/// There is one verb, and one only.
fn one_verb(schema: &mut Schema) {
    let verbs = ["intercept", "wiretap", "replace", "ingest"];
    let verbs = verbs.map(|verb| serde_json::json!({"required": [verb]}));
    schema.insert("oneOf".into(), verbs.as_slice().into());
}

/// The JSON Schema of files, as text.
pub(crate) fn schema() -> Result<String, Failure> {
    let schema = schemars::schema_for!(Document);
    let text = serde_json::to_string_pretty(&schema).map_err(Failure::internal)?;
    Ok(text + "\n")
}

impl Source {
    /// Reads what the file says, as far as that makes sense by itself.
    pub(super) fn document(&self) -> Result<Document, Failure> {
        serde_yaml::from_str(&self.text).map_err(|error| malformed(&self.name, &error))
    }
}

fn malformed(name: &str, error: &serde_yaml::Error) -> Failure {
    let mut message = error.to_string();
    let place = match error.location() {
        Some(location) => {
            let (line, column) = (location.line(), location.column());
            let told_twice = format!(" at line {line} column {column}");
            if let Some(shorter) = message.strip_suffix(&told_twice) {
                message.truncate(shorter.len());
            }
            format!("{name}:{line}")
        }
        None => name.to_owned(),
    };
    let (what, next_step) = match unknown_key(&message) {
        Some(told) => told,
        None => (
            message,
            "see README for what may be there, or `kvpn up --schema`".to_owned(),
        ),
    };
    Failure::new(Reason::Usage, format!("{place}: {what}"), next_step)
}

/// What to say of an unknown key, which serde tells with those that there are.
fn unknown_key(message: &str) -> Option<(String, String)> {
    let (_, told) = message.split_once("unknown field ")?;
    let mut names = told.split('`').skip(1).step_by(2);
    let key = names.next()?;
    let known: Vec<&str> = names.collect();
    let next_step = match nearest(key, known.iter().copied()) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("it may be one of {}", known.join(", ")),
    };
    Some((format!("there is no key `{key}` here"), next_step))
}

/// The name that somebody may have meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known: &str| strsim::jaro_winkler(&name.to_lowercase(), &known.to_lowercase());
    let known = known.map(|known| (likeness(known), known));
    let (likeness, nearest) = known.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (likeness > 0.8).then_some(nearest)
}
