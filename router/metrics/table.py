"""Declares a router's metrics, each with where its value is kept."""

from typing import Final

from cluster.metrics.labels import MEMBER, PERCENTILE, ROLE
from cluster.metrics.metric import Alias, Kind, Label, Metric, by_label, value
from cluster.status import STATUS
from router.metrics.reading import STATES, RouterReading

# HTTP: a header or a length that is wrong; empty: no error.
REASONS: Final = tuple(sorted({"", "HTTP", *(error.reason for error in STATUS)}))
_OUTCOME: Final = Label("outcome", ("finished", "refused", "cancelled", "failed"))
_REASON: Final = Label("reason", REASONS, meaning="of the error, as clients read it; empty: none")
_FINISH: Final = Label("finish", ("stop", "length", "unspecified"))
_STATE: Final = Label("state", STATES)
_CLASS: Final = Label("class", at_most=64, meaning="a class of service, as policies call it")
_SIDE: Final = Label("side", ("active", "canary"))
_HASH: Final = Label("hash", at_most=1, meaning="of what the policy in force means")
_GENERATION: Final = Label("generation", at_most=1, meaning="its number")
_WORKER: Final = (MEMBER, ROLE)

REQUESTS: Final[tuple[Metric[RouterReading], ...]] = (
    Metric(
        name="penstock_requests",
        kind=Kind.COUNTER,
        help="Requests that have ended, by how and why.",
        labels=(_OUTCOME, _REASON),
        read=lambda r: r.by_outcome(),
    ),
    Metric(
        name="penstock_answers",
        kind=Kind.COUNTER,
        help="Whole answers, one a choice, by what ended them.",
        labels=(_FINISH,),
        read=by_label(lambda r: r.counts.finishes()),
        aliases=(Alias("vllm:request_success", {"finish": "finished_reason"}),),
    ),
    Metric(
        name="penstock_time_to_first_token_seconds",
        kind=Kind.HISTOGRAM,
        help="From a request's receipt to its first token, at the router.",
        read=value(lambda r: r.placer.records.ttft.report()),
        aliases=(Alias("vllm:time_to_first_token_seconds"),),
    ),
    Metric(
        name="penstock_inter_token_seconds",
        kind=Kind.HISTOGRAM,
        help="Between two tokens of an answer: each gap counts as long as the answer's mean.",
        read=value(lambda r: r.counts.itl.report()),
        aliases=(
            Alias("vllm:inter_token_latency_seconds"),
            Alias("vllm:time_per_output_token_seconds"),
        ),
    ),
    Metric(
        name="penstock_request_duration_seconds",
        kind=Kind.HISTOGRAM,
        help="From receipt to the last message, of finished requests.",
        read=value(lambda r: r.counts.total.report()),
        aliases=(Alias("vllm:e2e_request_latency_seconds"),),
    ),
    Metric(
        name="penstock_request_queue_seconds",
        kind=Kind.HISTOGRAM,
        help="That a prompt waited at the worker that computed it.",
        read=value(lambda r: r.counts.queue.report()),
        aliases=(Alias("vllm:request_queue_time_seconds"),),
    ),
    Metric(
        name="penstock_request_prefill_seconds",
        kind=Kind.HISTOGRAM,
        help="From a prompt's first step to its first token.",
        read=value(lambda r: r.counts.prefill.report()),
        aliases=(Alias("vllm:request_prefill_time_seconds"),),
    ),
    Metric(
        name="penstock_request_transfer_seconds",
        kind=Kind.HISTOGRAM,
        help="From granted blocks to verified KV, of prompts computed elsewhere.",
        read=value(lambda r: r.counts.transfer.report()),
    ),
    Metric(
        name="penstock_request_decode_seconds",
        kind=Kind.HISTOGRAM,
        help="From an answer's first token to its last.",
        read=value(lambda r: r.counts.decode.report()),
        aliases=(Alias("vllm:request_decode_time_seconds"),),
    ),
    Metric(
        name="penstock_prompt_tokens",
        kind=Kind.COUNTER,
        help="Tokens of prompts of which the first token came.",
        read=value(lambda r: r.placer.books.counters.hits.num_prompt),
        aliases=(Alias("vllm:prompt_tokens"), Alias("vllm:prefix_cache_queries")),
    ),
    Metric(
        name="penstock_cached_tokens",
        kind=Kind.COUNTER,
        help="Of these, tokens that were not computed anew.",
        read=value(lambda r: r.placer.books.counters.hits.num_actual),
        aliases=(Alias("vllm:prefix_cache_hits"),),
    ),
    Metric(
        name="penstock_predicted_cached_tokens",
        kind=Kind.COUNTER,
        help="As many the router had predicted when it placed them.",
        read=value(lambda r: r.placer.books.counters.hits.num_predicted),
    ),
    Metric(
        name="penstock_generated_tokens",
        kind=Kind.COUNTER,
        help="Tokens passed on to clients.",
        read=value(lambda r: r.relayed.num_tokens),
        aliases=(Alias("vllm:generation_tokens"),),
    ),
    Metric(
        name="penstock_relayed_messages",
        kind=Kind.COUNTER,
        help="Messages of answers passed on to clients.",
        read=value(lambda r: r.relayed.num_messages),
    ),
    Metric(
        name="penstock_requests_in_flight",
        kind=Kind.GAUGE,
        help="Requests that the router has taken on and not answered yet.",
        read=value(lambda r: r.admission.num_in_flight),
    ),
    Metric(
        name="penstock_parked_requests",
        kind=Kind.GAUGE,
        help="Of these, requests that wait for a decode worker to come back.",
        read=value(lambda r: r.waiting.num_requests),
    ),
    Metric(
        name="penstock_parked_bytes",
        kind=Kind.GAUGE,
        help="What those that wait for a decode worker hold.",
        read=value(lambda r: r.waiting.num_bytes),
    ),
    Metric(
        name="penstock_parked_longest_seconds",
        kind=Kind.GAUGE,
        help="How long the first of those has waited for a decode worker.",
        read=value(lambda r: r.waiting.longest_s),
    ),
)

PLACING: Final[tuple[Metric[RouterReading], ...]] = (
    Metric(
        name="penstock_decision_seconds",
        kind=Kind.HISTOGRAM,
        help="What it took to decide where a request goes, at each try.",
        read=value(lambda r: r.counts.decision.report()),
    ),
    Metric(
        name="penstock_placements",
        kind=Kind.COUNTER,
        help="Times that a request was given to workers.",
        read=value(lambda r: r.placer.books.counters.num_placed),
    ),
    Metric(
        name="penstock_moved_placements",
        kind=Kind.COUNTER,
        help="Of these, those of requests that workers before had not finished.",
        read=value(lambda r: r.placer.books.counters.num_moved),
    ),
    Metric(
        name="penstock_reviewed_decisions",
        kind=Kind.COUNTER,
        help="Decisions that were priced again in hindsight, one in 64.",
        read=value(lambda r: r.placer.records.regret.dearer.count),
    ),
    Metric(
        name="penstock_regret_seconds",
        kind=Kind.COUNTER,
        help="By how much these were dearer than the best choice in hindsight.",
        read=value(lambda r: r.placer.records.regret.sum_s),
    ),
    Metric(
        name="penstock_first_token_prediction_ratio",
        kind=Kind.GAUGE,
        help="Actual over predicted time to first token, of the last few hundred requests.",
        labels=(PERCENTILE,),
        read=by_label(lambda r: r.ttft_ratios()),
    ),
    Metric(
        name="penstock_inter_token_prediction_ratio",
        kind=Kind.GAUGE,
        help="Actual over predicted time between two tokens, of the last few hundred answers.",
        labels=(PERCENTILE,),
        read=by_label(lambda r: r.itl_ratios()),
    ),
    Metric(
        name="penstock_index_grains",
        kind=Kind.GAUGE,
        help="Runs of tokens that the prefix index knows.",
        read=value(lambda r: r.placer.index.num_grains),
    ),
    Metric(
        name="penstock_index_bytes",
        kind=Kind.GAUGE,
        help="Memory of the prefix index, as estimated.",
        read=value(lambda r: r.placer.index.num_bytes),
    ),
    Metric(
        name="penstock_index_budget_bytes",
        kind=Kind.GAUGE,
        help="Memory that the prefix index may take.",
        read=value(lambda r: r.placer.index.budget_bytes),
    ),
    Metric(
        name="penstock_index_forgotten_grains",
        kind=Kind.COUNTER,
        help="Runs of tokens forgotten for that budget while a worker still held them.",
        read=value(lambda r: r.placer.index.num_forgotten),
    ),
    Metric(
        name="penstock_index_age_seconds",
        kind=Kind.GAUGE,
        help="How old what the prefix index knows of a worker is.",
        labels=_WORKER,
        read=lambda r: r.index_ages(),
    ),
    Metric(
        name="penstock_index_gaps",
        kind=Kind.COUNTER,
        help="Times that events of a worker's life were missed, and all was asked anew.",
        labels=_WORKER,
        read=lambda r: r.by_worker(lambda m: r.fleet.num_gaps(m.member.worker.worker_id)),
    ),
)

MEMBERS: Final[tuple[Metric[RouterReading], ...]] = (
    Metric(
        name="penstock_members",
        kind=Kind.GAUGE,
        help="Workers by how they stand with this router.",
        labels=(ROLE, _STATE),
        read=lambda r: r.by_state(),
    ),
    Metric(
        name="penstock_worker_requests_in_flight",
        kind=Kind.GAUGE,
        help="Requests that this router has given to a worker.",
        labels=_WORKER,
        read=lambda r: r.by_worker(lambda m: m.num_in_flight),
    ),
    Metric(
        name="penstock_worker_report_age_seconds",
        kind=Kind.GAUGE,
        help="Since a worker reported its load to this router.",
        labels=_WORKER,
        read=lambda r: r.by_worker(lambda m: m.report_age_s or 0.0),
    ),
    Metric(
        name="penstock_worker_cached_tokens",
        kind=Kind.COUNTER,
        help="Tokens that a worker found cached of prompts placed on it.",
        labels=_WORKER,
        read=lambda r: r.by_worker(
            lambda m: r.placer.books.hits_of(m.member.worker.worker_id).num_actual
        ),
    ),
    Metric(
        name="penstock_worker_predicted_cached_tokens",
        kind=Kind.COUNTER,
        help="As many the router had predicted.",
        labels=_WORKER,
        read=lambda r: r.by_worker(
            lambda m: r.placer.books.hits_of(m.member.worker.worker_id).num_predicted
        ),
    ),
    Metric(
        name="penstock_store_up",
        kind=Kind.GAUGE,
        help="Is 1 while the store of members answers, else 0.",
        read=value(lambda r: not r.fleet.is_store_away),
    ),
)

POLICY: Final[tuple[Metric[RouterReading], ...]] = (
    Metric(
        name="penstock_class_placed",
        kind=Kind.COUNTER,
        help="Requests of a class that were given to workers.",
        labels=(_CLASS,),
        read=by_label(lambda r: r.by_class(lambda c: c.num_placed)),
    ),
    Metric(
        name="penstock_class_rejected",
        kind=Kind.COUNTER,
        help="Requests of a class that were refused, as they could not be served in time.",
        labels=(_CLASS,),
        read=by_label(lambda r: r.by_class(lambda c: c.num_rejected)),
    ),
    Metric(
        name="penstock_class_started",
        kind=Kind.COUNTER,
        help="Requests of a class that got their first token.",
        labels=(_CLASS,),
        read=by_label(lambda r: r.by_class(lambda c: c.num_started)),
    ),
    Metric(
        name="penstock_class_in_time",
        kind=Kind.COUNTER,
        help="Of these, requests that got it within their target.",
        labels=(_CLASS,),
        read=by_label(lambda r: r.by_class(lambda c: c.num_in_time)),
    ),
    Metric(
        name="penstock_class_finished",
        kind=Kind.COUNTER,
        help="Requests of a class that were finished.",
        labels=(_CLASS,),
        read=by_label(lambda r: r.by_class(lambda c: c.num_finished)),
    ),
    Metric(
        name="penstock_class_steady",
        kind=Kind.COUNTER,
        help="Of these, requests whose tokens came within their target, on average.",
        labels=(_CLASS,),
        read=by_label(lambda r: r.by_class(lambda c: c.num_steady)),
    ),
    Metric(
        name="penstock_policy_generation",
        kind=Kind.GAUGE,
        help="Number of the policy in force, and of the one on trial while there is one.",
        labels=(_SIDE,),
        read=by_label(lambda r: r.generations()),
    ),
    Metric(
        name="penstock_canary_traffic_ratio",
        kind=Kind.GAUGE,
        help="Share of the requests that the policy on trial gets; 0: none is on trial.",
        read=value(lambda r: r.canary_share),
    ),
    Metric(
        name="penstock_trial_requests",
        kind=Kind.COUNTER,
        help="Requests placed since a trial began, by which policy; none while there is no trial.",
        labels=(_SIDE,),
        read=by_label(lambda r: r.on_trial(lambda f: f.num_placed)),
    ),
    Metric(
        name="penstock_trial_errors",
        kind=Kind.COUNTER,
        help="Of these, requests that failed.",
        labels=(_SIDE,),
        read=by_label(lambda r: r.on_trial(lambda f: f.num_errors)),
    ),
    Metric(
        name="penstock_config_reloads",
        kind=Kind.COUNTER,
        help="Policies that this router was given, wherever they came from.",
        read=value(lambda r: r.policy.reloads.num_attempts),
    ),
    Metric(
        name="penstock_config_reload_failures",
        kind=Kind.COUNTER,
        help="Of these, policies that were wrong.",
        read=value(lambda r: r.policy.reloads.num_failures),
    ),
    Metric(
        name="penstock_config_last_reload_successful",
        kind=Kind.GAUGE,
        help="Is 1 if the policy that was given last was good, 0 if an earlier one is in force.",
        read=value(lambda r: r.policy.reloads.is_last_good),
    ),
    Metric(
        name="penstock_config_last_reload_success_timestamp_seconds",
        kind=Kind.GAUGE,
        help="When a policy that was given was good, of the Unix epoch.",
        read=value(lambda r: r.policy.reloads.last_good_at_s),
    ),
    Metric(
        name="penstock_config_info",
        kind=Kind.GAUGE,
        help="Is 1: its labels say which policy is in force.",
        labels=(_HASH, _GENERATION),
        read=lambda r: r.config_info(),
    ),
)

CALLERS: Final[tuple[Metric[RouterReading], ...]] = (
    Metric(
        name="penstock_api_keys",
        kind=Kind.GAUGE,
        help="API keys in force; 0: nobody is asked for one.",
        read=value(lambda r: len(r.callers.table.keys) if r.callers.table else 0),
    ),
    Metric(
        name="penstock_api_keys_are_current",
        kind=Kind.GAUGE,
        help="Is 1 if the keys in force are those that their file says, else 0.",
        read=value(lambda r: not r.callers.error),
    ),
    Metric(
        name="penstock_unauthenticated_calls",
        kind=Kind.COUNTER,
        help="Calls that came without a key that is known.",
        read=value(lambda r: r.callers.num_refused),
    ),
    Metric(
        name="penstock_unchecked_quotas",
        kind=Kind.COUNTER,
        help="Times that a quota was not checked, as the store was away.",
        read=value(lambda r: r.quotas.num_unchecked),
    ),
    Metric(
        name="penstock_certificate_expires_in_seconds",
        kind=Kind.GAUGE,
        help="Until the certificate of the front doors ends; absent: they speak no TLS.",
        read=lambda r: r.certificate_left_s(),
    ),
    Metric(
        name="penstock_certificate_is_current",
        kind=Kind.GAUGE,
        help="Is 0 if the front doors show another certificate than their files say, else 1.",
        read=value(lambda r: r.certificate is None or not r.certificate.error),
    ),
)

ROUTER: Final = (*REQUESTS, *PLACING, *MEMBERS, *POLICY, *CALLERS)
