//! The holder of a flow.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{Cluster, Connection, Ended, Stage};
use crate::netstack::tests::simulation::plan::{Answer, End};

impl Connection {
    /// Lets the flow's holder act; only when it was woken, or it is its turn.
    pub(in crate::netstack::tests::simulation) fn act_as_cluster(&mut self, now: Instant) {
        self.answer(now);
        let cluster = &mut self.cluster;
        let wakes = cluster.woken.count();
        if wakes != std::mem::replace(&mut cluster.wakes_seen, wakes) {
            cluster.turn.call(now);
        }
        if !cluster.turn.take(now) {
            return;
        }
        let Stage::Open(flow) = &cluster.stage else {
            return;
        };
        let mut cx = Context::from_waker(&cluster.waker);
        let mut left = cluster.turn.pace.chunk;
        let is_paced = !cluster.turn.pace.every.is_zero();
        let mut more = true;
        while std::mem::take(&mut more) {
            let (received, sent) = (cluster.received, cluster.sent);
            let limit = match self.plan.end {
                End::ClusterResets(at) | End::HolderDrops(at) => at,
                End::Orderly | End::HostAborts(_) => usize::MAX,
            };
            if received + sent >= limit {
                if matches!(self.plan.end, End::ClusterResets(_)) {
                    flow.reset(now);
                }
                return cluster.end(Ended::Reset);
            }
            // An echo that cannot get rid of its bytes takes no others.
            let is_full = self.plan.echo && received - sent >= 64 << 10;
            if cluster.ended.is_none() && !is_full {
                let mut got = Vec::new();
                let take = |data: &[u8]| {
                    let length = data.len().min(left - got.len());
                    got.extend_from_slice(&data[..length]);
                    length
                };
                match flow.poll_read(&mut cx, take, now) {
                    Poll::Ready(Ok(0)) if left > 0 => {
                        assert!(self.host.closed, "EOF too early: {:?}", self.plan);
                        assert_eq!(received, self.up.len(), "EOF too early: {:?}", self.plan);
                        cluster.ended = Some(Ended::Fin);
                        more = true;
                    }
                    Poll::Ready(Ok(length)) => {
                        assert_eq!(length, got.len());
                        let expected = self.up.get(received..received + length);
                        assert!(expected == Some(&got), "other bytes: {:?}", self.plan);
                        assert!(received + length <= self.host.sent);
                        cluster.received += length;
                        more = true;
                    }
                    Poll::Ready(Err(error)) => {
                        assert!(self.plan.flow_may_be_reset(), "{error}: {:?}", self.plan);
                        return cluster.end(Ended::Reset);
                    }
                    Poll::Pending => {}
                }
            }
            let available = if self.plan.echo {
                cluster.received
            } else {
                self.down.len()
            };
            let end = available.min(sent + left);
            if sent < end {
                match flow.poll_write(&mut cx, &self.down[sent..end], now) {
                    Poll::Ready(Ok(length)) => {
                        assert!(length > 0 && length <= end - sent);
                        cluster.sent += length;
                        more = true;
                    }
                    Poll::Ready(Err(error)) => {
                        assert!(self.plan.flow_may_be_reset(), "{error}: {:?}", self.plan);
                        return cluster.end(Ended::Reset);
                    }
                    Poll::Pending => {}
                }
            }
            let has_ended = cluster.ended.is_some();
            let may_end = has_ended || !self.plan.cluster_last;
            if cluster.sent == self.down.len()
                && may_end
                && !cluster.shut_down
                && matches!(self.plan.end, End::Orderly | End::HostAborts(_))
            {
                flow.shutdown_write(now);
                cluster.shut_down = true;
            }
            if cluster.shut_down && has_ended {
                return cluster.end(Ended::Fin);
            }
            if is_paced {
                left -= left.min(cluster.received - received + cluster.sent - sent);
                if left == 0 {
                    break;
                }
            }
        }
        if more {
            cluster.turn.call(now);
        }
    }

    /// Answers the SYN when it is time.
    fn answer(&mut self, now: Instant) {
        let cluster = &mut self.cluster;
        if !matches!(cluster.stage, Stage::Held(_, until) if until <= now) {
            return;
        }
        let Stage::Held(pending, _) = std::mem::replace(&mut cluster.stage, Stage::Over) else {
            return;
        };
        match self.plan.answer {
            Answer::Accept(_) | Answer::TooLate(_) => {
                cluster.stage = Stage::Open(pending.accept(now));
                cluster.turn.call(now);
            }
            Answer::Refuse(_, error) => pending.refuse(error, now),
            Answer::Forget(_) => {
                drop(pending);
                cluster.stage = Stage::Waiting;
                self.plan.answer = Answer::Accept(Duration::ZERO);
            }
        }
    }
}

impl Cluster {
    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.stage = Stage::Over;
    }
}
