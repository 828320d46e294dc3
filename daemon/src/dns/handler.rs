//! From a question to its answer.

use std::net::IpAddr;
use std::time::Instant;

use hickory_proto::op::{
    Edns, Header, HeaderCounts, LowerQuery, Message, MessageType, Metadata, OpCode, ResponseCode,
};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::{LowerName, Name};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use kvpn_proto::names::CONNECTIONS_DOMAIN;
use kvpn_tunnel::dns::ForwardError;
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::debug;

use super::asked::AskedNames;
use super::cache::Cache;
use super::names::{Route, classify, domain};
use super::rewrite;
use super::rules::NameRules;
use super::upstream::{Question, Upstream};
use crate::session::cluster_info::ClusterInfo;
use crate::session::manager::Manager;
use crate::session::vnat::Vnat;

/// The smallest payload that a client without EDNS takes (RFC 1035).
const SMALLEST_PAYLOAD: u16 = 512;

/// How many questions are worked on at a time. Each that goes upstream takes a
/// socket, of which a process commonly may have a thousand.
const QUESTIONS: usize = 256;

/// Answers every question on the host.
pub(super) struct Handler {
    pub(super) manager: Manager,
    pub(super) upstream: Upstream,
    pub(super) cache: Cache,
    /// Answers of the host's name servers.
    pub(super) foreign: Cache,
    pub(super) rules: NameRules,
    pub(super) vnat: Vnat,
    pub(super) names: AskedNames,
    pub(super) room: Semaphore,
}

/// Room for as many questions as are worked on at a time.
pub(super) fn room() -> Semaphore {
    Semaphore::new(QUESTIONS)
}

/// A question, and the message that asks it.
#[derive(Clone)]
struct Asked {
    question: Question,
    query: Vec<u8>,
}

impl Asked {
    fn new(question: &LowerQuery, request: &Request) -> Self {
        let flags = request.edns.as_ref().map(Edns::flags);
        Self {
            question: Question {
                name: question.name().clone(),
                record_type: question.query_type(),
                class: question.query_class(),
                dnssec_ok: flags.is_some_and(|flags| flags.dnssec_ok),
                checking_disabled: request.metadata.checking_disabled,
            },
            query: request.as_slice().to_vec(),
        }
    }

    /// The same question under another name.
    fn under(&self, name: &Name) -> Option<Self> {
        let query = rewrite::question(&self.query, name)
            .inspect_err(|error| debug!(%error, "Question cannot be rewritten"))
            .ok()?;
        let question = Question {
            name: LowerName::new(name),
            ..self.question.clone()
        };
        Some(Self { question, query })
    }
}

impl Handler {
    /// The answer; `None` when there is none to be had.
    async fn answer(&self, question: &LowerQuery, request: &Request) -> Option<Message> {
        let asked = Asked::new(question, request);
        let name = question.original().name();
        if let Some(address) = rewrite::reverse_address(name) {
            return self.answer_reverse(name, address, asked).await;
        }
        if let Some(target) = self.rules.own(name) {
            return self.answer_own(name, &target, &asked).await;
        }
        if is_of_a_connection(name)
            && let Some(answer) = self.ask_next_connection(asked.clone()).await
        {
            return Some(answer);
        }
        let Some(target) = self.rules.alias(name).cloned() else {
            return self.answer_name(name, asked).await;
        };
        let mut answer = self.answer_name(&target, asked.under(&target)?).await?;
        rewrite::answer(&mut answer, &target, name);
        self.names.note(name, &answer);
        Some(answer)
    }

    /// The names of an address as this host sees it.
    async fn answer_reverse(&self, name: &Name, address: IpAddr, asked: Asked) -> Option<Message> {
        let real = self.vnat.real(address);
        if real != address {
            // The cluster knows it by its own; to anybody else that is another host's.
            return self.answer_own(name, &Name::from(real), &asked).await;
        }
        if self.vnat.is_hosts(address) {
            return self.ask_upstream(asked).await.ok();
        }
        self.answer_name(name, asked).await
    }

    /// What is under a name of this connection alone: its cluster knows it, or nobody.
    async fn answer_own(&self, name: &Name, target: &Name, asked: &Asked) -> Option<Message> {
        let cluster = self.manager.cluster().borrow().clone();
        let names = match classify(target, &cluster, &self.rules) {
            Route::Cluster => vec![target.clone()],
            Route::Completed(names) => names,
            Route::Upstream | Route::Nowhere => return Some(no_such_name()),
        };
        let answer = self.ask_in_turn(name, asked, &names, &cluster).await?;
        self.names.note(name, &answer);
        Some(answer)
    }

    async fn answer_name(&self, name: &Name, asked: Asked) -> Option<Message> {
        let cluster = self.manager.cluster().borrow().clone();
        match classify(name, &cluster, &self.rules) {
            Route::Cluster => {
                let elsewhere = asked.clone();
                let answer = self.ask_cluster(asked, &cluster).await?;
                if answer.metadata.response_code == ResponseCode::NXDomain
                    && let Some(answer) = self.ask_next_connection(elsewhere).await
                {
                    return Some(answer);
                }
                self.names.note(name, &answer);
                Some(answer)
            }
            Route::Completed(names) => self.ask_completed(name, asked, &names, &cluster).await,
            Route::Upstream => self.ask_upstream(asked).await.ok(),
            Route::Nowhere => Some(no_such_name()),
        }
    }

    /// Asks the cluster for names in turn until it has one; the answer is to `name`.
    async fn ask_in_turn(
        &self,
        name: &Name,
        asked: &Asked,
        in_cluster: &[Name],
        cluster: &ClusterInfo,
    ) -> Option<Message> {
        let mut last = None;
        for full in in_cluster {
            let mut answer = self.ask_cluster(asked.under(full)?, cluster).await?;
            rewrite::answer(&mut answer, full, name);
            if answer.metadata.response_code != ResponseCode::NXDomain {
                return Some(answer);
            }
            last = Some(answer);
        }
        last
    }

    /// A namespace may be called like a top-level domain, so a name that the
    /// cluster does not know may still be one of the world's.
    async fn ask_completed(
        &self,
        name: &Name,
        asked: Asked,
        in_cluster: &[Name],
        cluster: &ClusterInfo,
    ) -> Option<Message> {
        let answer = self.ask_in_turn(name, &asked, in_cluster, cluster).await?;
        if answer.metadata.response_code != ResponseCode::NXDomain {
            self.names.note(name, &answer);
            return Some(answer);
        }
        match self.ask_upstream(asked).await {
            Ok(elsewhere) => Some(elsewhere),
            Err(NoAnswer::NobodyToAsk) => Some(answer),
            // "No such name" would be remembered, though it is not known.
            Err(NoAnswer::Failed) => None,
        }
    }

    /// Clusters commonly have the same domain, so a name that this one does not have
    /// may be one of another connection's cluster.
    async fn ask_next_connection(&self, asked: Asked) -> Option<Message> {
        if !self.upstream.is_connection() {
            return None;
        }
        let answer = self.ask_upstream(asked).await.ok()?;
        (answer.metadata.response_code == ResponseCode::NoError).then_some(answer)
    }

    async fn ask_cluster(&self, asked: Asked, cluster: &ClusterInfo) -> Option<Message> {
        let mut answer = match self.cache.get(&asked.question, Instant::now()) {
            Some(answer) => answer,
            None => self.look_up(asked, cluster).await?,
        };
        rewrite::addresses(&mut answer, |address| self.vnat.shown(address));
        rewrite::forbid_caching(&mut answer);
        Some(answer)
    }

    async fn look_up(&self, asked: Asked, cluster: &ClusterInfo) -> Option<Message> {
        let _room = self.enter()?;
        match self.manager.lookup(asked.query).await {
            Ok(answer) => {
                let answer = read(&answer)?;
                if let Some(domain) = domain(cluster) {
                    let now = Instant::now();
                    self.cache.keep(asked.question, &domain, &answer, now);
                }
                Some(answer)
            }
            Err(error) => {
                debug!(%error, "Cluster did not answer");
                None
            }
        }
    }

    async fn ask_upstream(&self, asked: Asked) -> Result<Message, NoAnswer> {
        if self.upstream.has_changed() {
            self.foreign.forget_all(Instant::now());
        }
        if let Some(answer) = self.foreign.get(&asked.question, Instant::now()) {
            return Ok(answer);
        }
        let _room = self.enter().ok_or(NoAnswer::Failed)?;
        let question = asked.question.clone();
        match self.upstream.ask(asked.question, &asked.query).await {
            Ok(answer) => {
                let answer = read(&answer).ok_or(NoAnswer::Failed)?;
                self.foreign.keep_foreign(question, &answer, Instant::now());
                Ok(answer)
            }
            Err(error) => {
                debug!(%error, "The host's name servers did not answer");
                Err(match *error {
                    ForwardError::NoServers => NoAnswer::NobodyToAsk,
                    ForwardError::NotAQuery | ForwardError::TimedOut | ForwardError::Failed(_) => {
                        NoAnswer::Failed
                    }
                })
            }
        }
    }

    fn enter(&self) -> Option<SemaphorePermit<'_>> {
        let room = self.room.try_acquire();
        room.inspect_err(|_| debug!("Too many questions at once"))
            .ok()
    }
}

/// Tells whether a name has the form of those under a connection's domain.
fn is_of_a_connection(name: &Name) -> bool {
    let last = name.iter().next_back();
    name.num_labels() > 2
        && last.is_some_and(|label| label.eq_ignore_ascii_case(CONNECTIONS_DOMAIN.as_bytes()))
}

/// Why the host's name servers gave no answer.
enum NoAnswer {
    /// The host has none.
    NobodyToAsk,
    Failed,
}

fn read(answer: &[u8]) -> Option<Message> {
    Message::from_vec(answer)
        .inspect_err(|error| debug!(%error, "Answer cannot be read"))
        .ok()
}

#[tonic::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut responder: R,
    ) -> ResponseInfo {
        let answer = match request.queries.queries() {
            [question] if request.metadata.op_code == OpCode::Query => {
                self.answer(question, request).await
            }
            _ => Some(error(request, ResponseCode::NotImp)),
        };
        let answer = answer.unwrap_or_else(|| error(request, ResponseCode::ServFail));
        let mut metadata = answer.metadata;
        metadata.id = request.metadata.id;
        metadata.recursion_desired = request.metadata.recursion_desired;
        metadata.message_type = MessageType::Response;
        // Cut anew below, to what this client takes.
        metadata.truncation = false;
        let edns = edns(request, &answer);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            &answer.answers,
            &answer.authorities,
            [],
            &answer.additionals,
        );
        match responder.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                debug!(%error, "Answer cannot be sent");
                failed(&request.metadata)
            }
        }
    }
}

/// An answer has EDNS when its question has (RFC 6891 section 7), and is cut to
/// what that says.
fn edns(request: &Request, answer: &Message) -> Option<Edns> {
    let asked = request.edns.as_ref()?;
    let mut edns = answer.edns.clone().unwrap_or_default();
    // It is between us and who answered (RFC 7873), or of who asked before.
    edns.options_mut().remove(EdnsCode::Cookie);
    edns.set_max_payload(asked.max_payload().max(SMALLEST_PAYLOAD));
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    Some(edns)
}

fn error(request: &Request, code: ResponseCode) -> Message {
    let mut message = Message::error_msg(request.metadata.id, request.metadata.op_code, code);
    message.metadata.recursion_available = true;
    message
}

fn no_such_name() -> Message {
    let mut message = Message::error_msg(0, OpCode::Query, ResponseCode::NXDomain);
    message.metadata.recursion_available = true;
    message
}

fn failed(request: &Metadata) -> ResponseInfo {
    let mut metadata = Metadata::response_from_request(request);
    metadata.response_code = ResponseCode::ServFail;
    ResponseInfo::from(Header {
        metadata,
        counts: HeaderCounts::default(),
    })
}
