//! From a question to its answer.

use hickory_proto::op::{
    Edns, Header, HeaderCounts, LowerQuery, Message, MessageType, Metadata, OpCode, ResponseCode,
};
use hickory_proto::rr::Name;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use kvpn_tunnel::dns::ForwardError;
use tokio::sync::Semaphore;
use tracing::debug;

use super::asked::AskedNames;
use super::names::{Route, classify};
use super::rewrite;
use super::upstream::{Question, Upstream};
use crate::session::manager::Manager;

/// The smallest payload that a client without EDNS takes (RFC 1035).
const SMALLEST_PAYLOAD: u16 = 512;

/// How many questions are worked on at a time. Each that goes upstream takes a
/// socket, of which a process commonly may have a thousand.
const QUESTIONS: usize = 256;

/// Answers every question on the host.
pub(super) struct Handler {
    manager: Manager,
    upstream: Upstream,
    names: AskedNames,
    room: Semaphore,
}

impl Handler {
    pub(super) fn new(manager: Manager, upstream: Upstream, names: AskedNames) -> Self {
        Self {
            manager,
            upstream,
            names,
            room: Semaphore::new(QUESTIONS),
        }
    }

    /// The answer; `None` when there is none to be had.
    async fn answer(&self, question: &LowerQuery, request: &Request) -> Option<Message> {
        let Ok(_room) = self.room.try_acquire() else {
            debug!("Too many questions at once");
            return None;
        };
        let name = question.original().name();
        let route = classify(name, &self.manager.cluster().borrow());
        match route {
            Route::Cluster => {
                let answer = self.ask_cluster(request.as_slice().to_vec()).await?;
                self.names.note(name, &answer);
                Some(answer)
            }
            Route::Upstream => self.ask_upstream(question, request).await.ok(),
            Route::Completed(full) => self.ask_completed(question, &full, request).await,
        }
    }

    /// A namespace may be called like a top-level domain, so a name that the
    /// cluster does not know may still be one of the world's.
    async fn ask_completed(
        &self,
        question: &LowerQuery,
        full: &Name,
        request: &Request,
    ) -> Option<Message> {
        let query = rewrite::question(request.as_slice(), full)
            .inspect_err(|error| debug!(%error, "Question cannot be rewritten"))
            .ok()?;
        let mut answer = self.ask_cluster(query).await?;
        rewrite::answer(&mut answer, full, question.original().name());
        if answer.metadata.response_code != ResponseCode::NXDomain {
            self.names.note(question.original().name(), &answer);
            return Some(answer);
        }
        match self.ask_upstream(question, request).await {
            Ok(elsewhere) => Some(elsewhere),
            Err(NoAnswer::NobodyToAsk) => Some(answer),
            // "No such name" would be remembered, though it is not known.
            Err(NoAnswer::Failed) => None,
        }
    }

    async fn ask_cluster(&self, query: Vec<u8>) -> Option<Message> {
        match self.manager.lookup(query).await {
            Ok(answer) => read(&answer),
            Err(error) => {
                debug!(%error, "Cluster did not answer");
                None
            }
        }
    }

    async fn ask_upstream(
        &self,
        question: &LowerQuery,
        request: &Request,
    ) -> Result<Message, NoAnswer> {
        let flags = request.edns.as_ref().map(Edns::flags);
        let key = Question {
            name: question.name().clone(),
            record_type: question.query_type(),
            class: question.query_class(),
            dnssec_ok: flags.is_some_and(|flags| flags.dnssec_ok),
            checking_disabled: request.metadata.checking_disabled,
        };
        match self.upstream.ask(key, request.as_slice()).await {
            Ok(answer) => read(&answer).ok_or(NoAnswer::Failed),
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
    edns.set_max_payload(asked.max_payload().max(SMALLEST_PAYLOAD));
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    Some(edns)
}

fn error(request: &Request, code: ResponseCode) -> Message {
    let mut message = Message::error_msg(request.metadata.id, request.metadata.op_code, code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
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
