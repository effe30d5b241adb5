"""Plant small faults in the library, one at a time, and see whether the tests find them.

    python benchmarks/planted_faults.py                  # all of them: a table, and how many were caught
    python benchmarks/planted_faults.py --only absorb    # those whose name has the word in it
    python benchmarks/planted_faults.py --check          # only whether each fault still fits the source (a second)

A fault is one change of meaning in one file: an average without weights, a seed without the round, a file that is not
safe on the disk. For each of them ``src`` and ``tests`` are copied to a temporary folder, the old text is replaced by
the new one, and the tests that should notice are run there (default tier, one process, forked from one that has
imported torch, transformers and PEFT already). A fault that they let through
has survived: a test is missing. The exit code is 0 if every fault was caught, else 1. POSIX only.

Whoever changes a line that a fault changes moves the fault along: `--check` names those whose old text is not in its
file exactly once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # libraries read them when they are imported

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "peft", "datasets", "sklearn.metrics", "matplotlib.pyplot")
LIBRARIES += ("transformers.models.bert.modeling_bert", "transformers.models.auto.modeling_auto", "peft.tuners.lora")
QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # of plugins that a library imported before pytest could
HOURGLASS = 900  # seconds: a fault that makes the tests run for ever is noticed too


class Fault(NamedTuple):
    """A change that the tests must notice.

    Attributes:
        name: what is wrong then.
        file: below ``src/fedsa``.
        old: a text that is in the file exactly once.
        new: what takes its place.
        tests: pytest's names of the tests that should fail, below ``tests`` (or ``src`` for a doctest).
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    # -- the server: weights, sampling, versions, what it takes in ---------------------------------------------------
    Fault(
        "weights: every client counts alike",
        "server/server.py",
        'weight = update.num_examples if self._weighting == "num_examples" else 1',
        "weight = 1",
        ("server/test_server.py::test_weighting",),
    ),
    Fault(
        "weights: the setting is not looked at",
        "server/server.py",
        'weight = update.num_examples if self._weighting == "num_examples" else 1',
        "weight = update.num_examples",
        ("server/test_server.py::test_weighting",),
    ),
    Fault(
        "sampling: the same clients in every round",
        "server/server.py",
        'derive_seed(self._seed, "clients", round)',
        'derive_seed(self._seed, "clients")',
        ("server/test_server.py::test_who_is_sampled_depends_on_seed_and_round_alone",),
    ),
    Fault(
        "sampling: halves are rounded down",
        "server/sampling.py",
        "math.floor(fraction * clients + 0.5)",
        "math.floor(fraction * clients + 0.4999)",
        ("server/test_server.py::test_how_many_are_sampled",),
    ),
    Fault(
        "sampling: those who are evaluated are those who train",
        "engines/rounds.py",
        'derive_seed(settings.seed, "evaluation", round)',
        'derive_seed(settings.seed, "clients", round)',
        ("client/test_evaluation.py::test_a_part_of_the_clients_is_evaluated_anew_each_round",),
    ),
    Fault(
        "update: a lower rank than was sent is taken",
        "server/arrivals.py",
        "if cut_ranks else tuple(tensor.shape) == shape)",
        "or cut_ranks)",
        (
            "server/test_server.py::test_a_lower_rank_than_a_client_was_given_is_refused_unless_the_method_cuts_ranks",
            "server/test_server.py::test_one_clients_lower_rank_does_not_spoil_the_bound_of_the_others",
        ),
    ),
    Fault(
        "versions: a client is taken to hold what it has only helped to make",
        "server/arrivals.py",
        "update.round - 1 if base is None else base",
        "update.round",
        ("server/test_server.py", "algorithms/test_laws.py::test_who_skips_rounds_catches_up"),
    ),
    Fault(
        "versions: what a client holds is sent again",
        "algorithms/base.py",
        "if state.versions[key] > version and",
        "if state.versions[key] >= version and",
        ("server/test_server.py::test_a_client_gets_what_it_lacks_and_a_fresh_one_all",),
    ),
    Fault(
        "versions: a round without updates gives no new version",
        "algorithms/base.py",
        "newer = [key for key in state.tensors if self.renews(key, round)]",
        "newer = [key for key in tensors if self.renews(key, round)]",
        ("algorithms/test_laws.py::test_uploads_are_what_the_plan_declares",),
    ),
    Fault(
        "update: a tensor that was not declared is taken",
        "server/arrivals.py",
        "if forms.keys() != update.tensors.keys():",
        "if not forms.keys() <= update.tensors.keys():",
        ("algorithms/test_laws.py::test_the_server_refuses_what_is_not_declared",),
    ),
    Fault(
        "update: an infinite value is taken",
        "server/arrivals.py",
        "if not bool(tensor.isfinite().all()):",
        "if bool(tensor.isnan().any()):",
        ("algorithms/test_laws.py::test_a_spoilt_tensor_is_refused",),
    ),
    Fault(
        "update: another round's is taken",
        "server/arrivals.py",
        "if update.round != asked.get(update.client, round):",
        "if False:",
        ("algorithms/test_laws.py::test_an_update_that_does_not_fit_the_round_is_refused",),
    ),
    Fault(
        "update: clients may come in any order",
        "server/arrivals.py",
        "if update.client < last:",
        "if update.client < last and not seen:",
        ("algorithms/test_laws.py::test_updates_come_in_the_order_of_client_ids",),
    ),
    Fault(
        "ranks: a client of a lower rank is sent the whole tensors",
        "server/server.py",
        "rank=self._ranks.get(client),",
        "rank=None,",
        ("server/test_server.py::test_a_client_of_a_lower_rank_is_sent_its_own_rows_alone",),
    ),
    # -- means and methods -------------------------------------------------------------------------------------------
    Fault(
        "absorb: what came in bf16 stays bf16",
        "algorithms/base.py",
        "key: value.to(torch.promote_types(value.dtype, torch.float32)) for key, value in received.items()",
        "key: value for key, value in received.items()",
        ("steps/test_cast.py::test_a_client_begins_a_round_with_what_it_received",),
    ),
    Fault(
        "absorb: what was received is not taken",
        "algorithms/base.py",
        "for key, value in received.items()",
        "for key, value in received.items() if key not in tensors",
        ("steps/test_cast.py::test_a_client_begins_a_round_with_what_it_received",),
    ),
    Fault(
        "mean: it is computed in fp32",
        "adapters/means.py",
        "term = tensor.double() * weight",
        "term = tensor.float() * weight",
        ("adapters/test_means.py::test_what_a_mean_in_fp32_would_lose",),
    ),
    Fault(
        "mean: rows that no client has become zero",
        "adapters/means.py",
        "whole = before.double().clone()",
        "whole = torch.zeros_like(before.double())",
        ("adapters/test_means.py::test_rows_that_no_client_has_stay_as_they_were",),
    ),
    Fault(
        "mean of products: the scale s is left out",
        "adapters/means.py",
        "a[:rank].double() * (weight * scaling[module])",
        "a[:rank].double() * weight",
        ("algorithms/test_methods.py",),
    ),
    Fault(
        "restart: a client begins from its own A and B",
        "algorithms/base.py",
        "        if self.restarts:\n",
        "        if self.restarts and not begun:\n",
        ("algorithms/test_methods.py", "algorithms/test_laws.py::test_combine_after_partition_is_the_identity"),
    ),
    Fault(
        "fedsa: B is sent too",
        "algorithms/fedsa.py",
        "return LOCAL",
        "return SHARED",
        ("algorithms/test_laws.py::test_fedsa_sends_the_a_side_alone",),
    ),
    Fault(
        "ffa: A is trained at the clients",
        "algorithms/ffa.py",
        "            case Side.A:\n                return FROZEN",
        "            case Side.A:\n                return FROZEN._replace(trained=True)",
        ("behaviour/test_sharing.py::test_ffa_never_changes_the_a_side",),
    ),
    Fault(
        "rolora: A is first",
        "algorithms/rolora.py",
        "return SHARED if round % 2 == 0 else RECEIVED",
        "return SHARED if round % 2 == 1 else RECEIVED",
        ("algorithms/test_methods.py::test_rolora_averages_a_alone_in_even_rounds",),
    ),
    Fault(
        "frlora: the initial product is not taken off",
        "algorithms/frlora.py",
        "product(mean, state.scaling, module) - product(state.tensors, state.scaling, module)",
        "product(mean, state.scaling, module)",
        ("algorithms/test_methods.py::test_frlora_folds_the_averaged_adapters_change",),
    ),
    Fault(
        "fedex: each round's residual replaces the last one's",
        "algorithms/fedex.py",
        "state.tensors[delta].double() + update",
        "update",
        ("algorithms/test_laws.py::test_an_exact_method_is_exact",),
    ),
    Fault(
        "fedalt: the others' mean has the client itself in it",
        "algorithms/fedalt.py",
        "((mean * whole - own * weight) / (whole - weight))",
        "mean",
        ("algorithms/test_methods.py::test_fedalt_sends_each_client_the_mean_of_the_others",),
    ),
    Fault(
        "feddpa: the two adapters' weights are exchanged",
        "algorithms/feddpa.py",
        'return {"default": 2 * (1 - local), "local": 2 * local}',
        'return {"default": 2 * local, "local": 2 * (1 - local)}',
        ("algorithms/test_methods.py::test_feddpa_weighs_a_row_by_its_likeness_to_the_clients_own",),
    ),
    Fault(
        "sfed: the scale ignores the number of clients",
        "algorithms/sfed.py",
        "scaling * (clients * rank) ** 0.5",
        "scaling * rank**0.5",
        ("algorithms/test_methods.py::test_sfeds_scale",),
    ),
    # -- the client and the wire -------------------------------------------------------------------------------------
    Fault(
        "privacy: all that is trained is sent, B too",
        "client/site.py",
        "{key: outgoing[key] for key, plan in plans.items() if plan.sent},\n            job.step_state",
        "{key: outgoing[key] for key, plan in plans.items() if plan.trained},\n            job.step_state",
        ("client/test_site.py::test_what_is_kept_and_sent_is_what_the_plan_says",),
    ),
    Fault(
        "privacy: a tensor that the plan keeps goes along with the update",
        "client/site.py",
        "            {key: outgoing[key] for key, plan in plans.items() if plan.sent},",
        "            {**dict(list(tensors.items())[:2])}"
        " | {key: outgoing[key] for key, plan in plans.items() if plan.sent},",
        ("client/test_site.py::test_what_is_kept_and_sent_is_what_the_plan_says",),
    ),
    Fault(
        "privacy: two inputs of one round have the same noise",
        "steps/noise.py",
        '    return (digest_of("", named),)',
        '    return (digest_of("", {}),)',
        ("steps/test_client_privacy.py::test_two_inputs_of_one_round_never_have_the_same_noise_from_a_secret",),
    ),
    Fault(
        "privacy: a round is trained again from other tensors",
        "client/trained_once.py",
        "digest != known",
        "not digest",
        ("client/test_trained_once.py::test_other_tensors_and_earlier_rounds_are_refused_and_nobody_trains",),
    ),
    Fault(
        "privacy: a round is trained again beside other clients",
        "client/trained_once.py",
        'hash_of("\\n".join(each).encode())',
        "each[0]",
        ("client/test_trained_once.py::test_nobody_trains_a_round_again_beside_other_clients",),
    ),
    Fault(
        "privacy: the base's dropout comes from the public seed, also where there is a secret",
        "client/training/private.py",
        "return int(Noise(jobs[0].seed, privacy.secret, *purpose, *begun).seeds(1)[0])",
        "return derive_seed(jobs[0].seed, *purpose, *begun)",
        ("client/training/test_private.py::test_with_a_secret_all_dropout_comes_from_it",),
    ),
    Fault(
        "privacy: the same mean of more clients has the same noise",
        "steps/chain.py",
        '{"weights": torch.tensor(weights)}',
        "{}",
        ("steps/test_client_privacy.py::test_a_servers_noise_is_another_one_for_another_sum_of_the_same_mean",),
    ),
    Fault(
        "privacy: the count of adaptive clipping is not paid for",
        "accounting.py",
        "(noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5",
        "(noise_multiplier**-2) ** -0.5",
        ("steps/test_adaptive_clipping.py::test_both_noises_together_cost_what_is_told",),
    ),
    Fault(
        "client: it says that it has one row",
        "client/site.py",
        "examples = len(self.rows[job.client].train)",
        "examples = 1",
        ("behaviour/test_golden.py::test_two_fedsa_rounds_are_the_plain_computation",),
    ),
    Fault(
        "held version: a client keeps that it holds the round it trained in",
        "client/site.py",
        "ClientState(changed, result.optimizer_state, job.version, step_state)",
        "ClientState(changed, result.optimizer_state, job.version + 1, step_state)",
        ("steps/test_cast.py::test_a_client_is_measured_and_exported_with_what_it_would_receive",),
    ),
    Fault(
        "untrained clients: the head of one that has trained is fitted for a measurement too",
        "client/site.py",
        "self._fitted_head(client, payloads.round, tensors) if state is None else {}",
        "self._fitted_head(client, payloads.round, tensors)",
        ("behaviour/test_untrained_clients.py::test_measuring_changes_nothing_of_what_clients_do_later",),
    ),
    Fault(
        "untrained clients: the fitted head is not in what is exported",
        "runs/personal.py",
        "return {**tensors, **kept} if is_head_fitted else tensors",
        "return tensors",
        ("behaviour/test_untrained_clients.py::test_what_is_exported_is_what_was_measured",),
    ),
    Fault(
        "untrained clients: a training begins with the head that was fitted for a measurement",
        "runs/personal.py",
        "is_head_fitted = self._fits_heads and state is None and not for_training",
        "is_head_fitted = self._fits_heads and state is None",
        ("behaviour/test_untrained_clients.py::test_a_head_that_was_fitted_for_a_test_is_no_training",),
    ),
    Fault(
        "untrained clients: who has trained in a later round counts as trained in a test before",
        "engines/summary.py",
        "for round, client in trainings if round <= until)",
        "for round, client in trainings)",
        ("behaviour/test_untrained_clients.py::test_the_results_tell_who_has_not_trained_and_how_they_do",),
    ),
    Fault(
        "client: its initial tensors cover what it has kept",
        "client/state.py",
        "return {**initial, **(state.tensors if state else {})}",
        "return {**(state.tensors if state else {}), **initial}",
        ("client/test_site.py",),
    ),
    Fault(
        "own start: every client draws the same A",
        "client/state.py",
        'derive_seed(seed, "initial A", client, str(key))',
        'derive_seed(seed, "initial A", str(key))',
        ("behaviour/test_own_starts.py::test_each_client_draws_its_own_as_lora_does",),
    ),
    Fault(
        "ranks: what a client of a lower rank receives is not cropped",
        "client/state.py",
        "fitting = {key: cropped(value, initial[key].shape) for key, value in received.items()}",
        "fitting = dict(received)",
        (
            "algorithms/test_laws.py::test_who_skips_rounds_catches_up",
            "behaviour/test_family.py::test_peft_alone_gives_the_same_logits",
        ),
    ),
    Fault(
        "wire: bf16 is cut off instead of rounded",
        "steps/cast.py",
        "return {key: each.to(dtype) if self._casts(key, each.dtype) else each for key, each in tensors.items()}",
        "cut = {\n"
        "            key: (tensor.contiguous().view(torch.int32) & -65536).view(torch.float32)\n"
        '            if self.wire_dtype == "bf16" and tensor.dtype == torch.float32\n            else tensor\n'
        "            for key, tensor in tensors.items()\n        }\n"
        "        return {key: tensor.to(dtype) for key, tensor in cut.items()}",
        ("steps/test_cast.py::test_a_cast_rounds_to_the_nearest_and_copies_nothing_in_fp32",),
    ),
    Fault(
        "eight bits: what the rounding leaves is forgotten",
        "steps/int8.py",
        "wanted = change if kept is None else change + kept",
        "wanted = change if kept is None else change + 0 * kept",
        ("steps/test_int8.py::test_the_error_is_half_a_step_and_is_made_up_for",),
    ),
    Fault(
        "poison score: a change away from the others' is as good as one towards theirs",
        "steps/poison_score.py",
        "Scored(max(1 - cosine, ratio",
        "Scored(max(1 - abs(cosine), ratio",
        ("steps/test_poison_score.py::test_a_bad_update_is_left_out_and_named_and_the_round_goes_on",),
    ),
    Fault(
        "wire: what is sent down is not put on it",
        "server/server.py",
        "return steps.on_payload(ranked(algorithm.broadcast(state, client, round, version), rank))",
        "return ranked(algorithm.broadcast(state, client, round, version), rank)",
        ("steps/test_cast.py::test_what_crosses_is_in_bf16_and_half_the_bytes",),
    ),
    # -- rounds that overlap -----------------------------------------------------------------------------------------
    Fault(
        "secure aggregation: a site helps to open two sums of one round",
        "secure/party.py",
        "if self.opened and self.opened != chosen:",
        "if False and self.opened != chosen:",
        ("secure/test_protocol.py",),
    ),
    Fault(
        "secure aggregation: a site sends other values behind the same masks",
        "secure/party.py",
        "if self.masked and self.masked != digest:",
        "if False and self.masked != digest:",
        ("secure/test_protocol.py",),
    ),
    Fault(
        "secure aggregation: half of the sites can open a sum",
        "secure/party.py",
        "return parties // 2 + 1",
        "return (parties + 1) // 2",
        ("secure/test_protocol.py",),
    ),
    Fault(
        "secure aggregation: the masks of a site that has dropped out stay in the sum",
        "secure/opening.py",
        "for lost in sorted({*self.shared} - {*survivors}):",
        "for lost in ():",
        ("secure/test_protocol.py",),
    ),
    Fault(
        "secure aggregation: a value that does not fit is clipped",
        "secure/fixed_point.py",
        "values = tensor.double()",
        "values = tensor.double().clamp(-LARGEST, LARGEST)",
        ("secure/test_fixed_point.py",),
    ),
    Fault(
        "secure aggregation: after a crash, a sum that sites have begun to open is collected again",
        "engines/secure_fleet.py",
        "self._collected(payloads) if kept is None else",
        "self._collected(payloads) if True else",
        ("engines/test_secure_fleet.py",),
    ),
    Fault(
        "secure aggregation: a site takes part in a second sum of a round that it has helped to open",
        "client/masking.py",
        'if before is not None and before["opened"] >= round:',
        'if before is not None and before["opened"] > round:',
        ("engines/test_secure_fleet.py",),
    ),
    Fault(
        "secure aggregation: a sum of fewer updates than the quorum is opened",
        "server/server.py",
        "        check_quorum()  # a sum that is opened cannot be closed again\n",
        "",
        ("steps/test_secure_sum.py",),
    ),
    Fault(
        "overlap: an update that is late counts in full",
        "steps/staleness.py",
        "factor, moved = self.weight(update.staleness), {}",
        "factor, moved = 1.0, {}",
        ("steps/test_staleness.py",),
    ),
    Fault(
        "overlap: what a client began with is what the server has later",
        "server/bases.py",
        "{key: before.tensors[key] for key in keys}",
        "{key: state.tensors[key] for key in keys}",
        ("steps/test_staleness.py",),
    ),
    Fault(
        "overlap: who has come is still under way, and counts again",
        "engines/overlapping.py",
        "self._progress.underway = dict(self._runners.underway)",
        "self._progress.underway = {**dict(self._runners.underway), **{client: payloads.round for client in come}}",
        ("engines/test_overlapping.py",),
    ),
    Fault(
        "overlap: what is under way is not safe when the round is",
        "engines/overlapping.py",
        "        self._runners.keep()\n",
        "",
        ("engines/test_overlapping.py",),
    ),
    Fault(
        "overlap: a round is chosen by those alone who are idle",
        "engines/rounds.py",
        "{client: known[client] for client in drawn if client in known}",
        "{client: known[client] for client in idle}",
        ("engines/test_overlapping.py::test_who_still_trains_is_not_measured_and_its_newest_score_counts",),
    ),
    # -- messages and sites ------------------------------------------------------------------------------------------
    Fault(
        "messages: tensors come in the library's order",
        "messages.py",
        "dict(sorted(load(data).items()))",
        "load(data)",
        ("engines/test_remote.py::test_tensors_come_out_of_a_message_in_the_order_of_their_names",),
    ),
    Fault(
        "messages: a second entry of metadata",
        "messages.py",
        "save(tensors, {_ENTRY: digest_of(text, tensors) + text})",
        'save(tensors, {_ENTRY: digest_of(text, tensors) + text, "kind": message.kind})',
        ("engines/test_remote.py::test_equal_messages_are_equal_bytes",),
    ),
    Fault(
        "site: a B is taken from the server",
        "client/answers.py",
        "if key not in whole or not site.algorithm.plan(key, message.round).received:",
        "if key not in whole:",
        ("deploy/test_deployed.py::test_a_server_cannot_put_a_b_in_the_place_of_a_clients_own",),
    ),
    Fault(
        "site: a server that has lost its folder costs it its states",
        "client/answers.py",
        "if ahead > last_kept + 1:",
        "if ahead > last_kept + 9:",
        ("deploy/test_deployed.py::test_a_server_that_has_lost_its_folder_does_not_cost_a_site_its_states",),
    ),
    Fault(
        "site: an old copy of its states is not noticed",
        "client/answers.py",
        "if version < held[client]:",
        "if state is None and version < held[client]:",
        ("deploy/test_deployed.py::test_a_site_that_has_lost_its_states_or_has_an_old_copy_is_told_so",),
    ),
    Fault(
        "site: an answer may leave that is not in the list",
        "client/sent.py",
        (
            '        self._note({**_entry(message), "bytes": len(answer), "request": path.name})'
            "  # first: no answer leaves unlisted\n"
            "        write_atomically(path, hashlib.sha256(answer).digest() + answer)\n"
        ),
        (
            "        write_atomically(path, hashlib.sha256(answer).digest() + answer)\n"
            '        self._note({**_entry(message), "bytes": len(answer), "request": path.name})\n'
        ),
        ("client/test_sent.py::test_an_answer_that_cannot_be_listed_is_not_kept",),
    ),
    Fault(
        "fleet: what the server cannot use counts for the quorum",
        "engines/remote.py",
        "            self.check(update, round)\n",
        "",
        ("engines/test_remote.py::test_what_the_server_cannot_use_does_not_count_for_the_quorum",),
    ),
    Fault(
        "deploy: an answer that cannot be carried is asked for again and again",
        "deploy/worker.py",
        "        raise UnusableAnswerError(str(error)) from None",
        '        raise ConnectionError("again") from None',
        ("deploy/test_worker.py::test_an_answer_from_a_worker_without_limits_is_told_at_once",),
    ),
    Fault(
        "deploy: every user of the machine may ask a worker",
        "deploy/worker.py",
        "path.chmod(0o600)",
        "path.chmod(0o666)",
        ("deploy/test_worker.py::test_a_worker_answers_and_only_its_user_may_ask",),
    ),
    Fault(
        "deploy: a site that has made its key is given another one",
        "deploy/certificates.py",
        "    kit.key.unlink()\n",
        "",
        ("deploy/test_certificates.py::test_a_key_that_is_made_at_the_site_never_leaves_it",),
    ),
    Fault(
        "deploy: a site takes rows of clients that are not its own",
        "deploy/own_rows.py",
        "    if missing or others:\n",
        "    if missing:\n",
        ("deploy/test_own_rows.py::test_rows_that_do_not_fit_the_site_are_refused",),
    ),
    Fault(
        "deploy: a site that is only measured trains when it is asked",
        "client/answers.py",
        "            if not self._trains:\n",
        "            if False:\n",
        ("engines/test_membership.py::test_a_site_that_is_only_measured_refuses_to_train",),
    ),
    Fault(
        "deploy: a round before a client joined is read as if it had been there",
        "store/server_states.py",
        " if first <= round]",
        "]",
        ("store/test_replace_clients.py::test_each_round_has_the_clients_that_were_in_it",),
    ),
    # -- steps on updates --------------------------------------------------------------------------------------------
    Fault(
        "steps: the server takes them in the client's order",
        "steps/chain.py",
        "for step in reversed(self.steps):\n            update, weight",
        "for step in self.steps:\n            update, weight",
        ("steps/test_chain.py::test_the_server_takes_the_steps_the_other_way_round",),
    ),
    Fault(
        "steps: a client forgets what its steps kept",
        "client/site.py",
        "step_state=state.step_state if state else {},",
        "step_state={},",
        ("steps/test_chain.py::test_a_client_keeps_the_state_of_its_steps",),
    ),
    Fault(
        "steps: the plan does not know of the cast",
        "steps/cast.py",
        "return form._replace(dtype=_DTYPES[self.wire_dtype])",
        "return form",
        ("steps/test_robust.py::test_every_step_obeys_the_laws",),
    ),
    Fault(
        "norm bound: it is measured from zero, not from the server's values",
        "steps/norm_bound.py",
        "tensor.double() - starts[key]",
        "tensor.double()",
        ("steps/test_robust.py::test_no_client_pulls_further_than_the_bound",),
    ),
    Fault(
        "trimmed mean: part of a client is rounded up",
        "steps/trimmed_mean.py",
        "int(self.trim_fraction * count)",
        "round(self.trim_fraction * count)",
        ("steps/test_robust.py::test_the_trimmed_mean_is_that_of_each_number",),
    ),
    # -- the server's optimiser --------------------------------------------------------------------------------------
    Fault(
        "server optimiser: its moments begin anew in every round",
        "steps/server_optimizer.py",
        'kept = slots.get(f"{name}|{key}")',
        "kept = None",
        ("steps/test_server_optimizer.py::test_the_papers_formulas",),
    ),
    Fault(
        "server optimiser: FedYogi is FedAdam",
        "steps/server_optimizer.py",
        '(v - square).sign() * square if settings.optimizer == "fedyogi" else v - square',
        "v - square",
        ("steps/test_server_optimizer.py::test_the_papers_formulas",),
    ),
    Fault(
        "server optimiser: v begins at 0",
        "steps/server_optimizer.py",
        'moment("v", tau**2)',
        'moment("v", 0.0)',
        ("steps/test_server_optimizer.py::test_the_papers_formulas",),
    ),
    # -- training ----------------------------------------------------------------------------------------------------
    Fault(
        "schedule: every round begins it anew",
        "client/training/sequential.py",
        "(job.round - 1 + number / len(steps)) / job.rounds",
        "number / len(steps)",
        ("client/training/test_sequential.py::test_the_rate_follows_the_whole_run_and_not_the_round",),
    ),
    Fault(
        "schedule: no warm-up",
        "client/training/job.py",
        "return progress / warmup",
        "return 1.0",
        ("client/training/test_job.py::test_learning_rate_factor",),
    ),
    Fault(
        "clipping: each tensor's gradient by itself",
        "client/training/sequential.py",
        "nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)",
        "[nn.utils.clip_grad_norm_([value], settings.max_grad_norm) for value in parameters.values()]",
        ("client/training/test_sequential.py::test_clipping_bounds_the_common_norm_of_all_gradients",),
    ),
    Fault(
        "clipping: a cohort's by its first block",
        "client/training/cohort.py",
        "norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)",
        "norms = parts[0]",
        ("client/training/test_cohort.py::test_with_every_setting_of_the_training",),
    ),
    Fault(
        "dropout: the same in every round",
        "client/training/job.py",
        'derive_seed(job.seed, "dropout", job.client, job.round)',
        'derive_seed(job.seed, "dropout", job.client)',
        ("client/training/test_job.py::test_dropout_depends_on_seed_client_and_round_alone",),
    ),
    Fault(
        "dropout: the same for every client",
        "client/training/job.py",
        'derive_seed(job.seed, "dropout", job.client, job.round)',
        'derive_seed(job.seed, "dropout", job.round)',
        ("client/training/test_cohort.py::test_dropout_of_different_clients_differs",),
    ),
    Fault(
        "dropout: the same in every batch of a round",
        "models/dropout.py",
        "(seed + batch * self.layers + layer) % 2**63",
        "(seed + layer) % 2**63",
        ("models/test_dropout.py::test_every_seed_batch_and_layer_has_a_draw_of_its_own",),
    ),
    Fault(
        "batches: every round begins with the same rows",
        "client/training/job.py",
        "rows = _rows(job, (job.round - 1) * span, job.round * span)",
        "rows = _rows(job, 0, span)",
        ("client/training/test_job.py::test_with_local_steps_passes_go_on_over_round_boundaries",),
    ),
    Fault(
        "accumulation: gradients are added, not averaged",
        "client/training/sequential.py",
        "(loss / len(batches)).backward()",
        "loss.backward()",
        ("client/training/test_sequential.py::test_gradient_accumulation_is_a_larger_batch",),
    ),
    Fault(
        "cohort: a client's loss is shared out over all clients",
        "client/training/cohort.py",
        "shares = torch.tensor([1 / len(now[place]) for place in with_rows], dtype=losses.dtype)",
        "shares = torch.tensor([1 / len(with_rows) for place in with_rows], dtype=losses.dtype)",
        ("client/training/test_cohort.py::test_with_every_setting_of_the_training",),
    ),
    Fault(
        "cohort: an accumulated step is the sum of its batches",
        "client/training/cohort.py",
        "shares = torch.tensor([1 / len(now[place]) for place in with_rows], dtype=losses.dtype)",
        "shares = torch.tensor([1.0 for place in with_rows], dtype=losses.dtype)",
        ("client/training/test_cohort.py::test_with_every_setting_of_the_training",),
    ),
    Fault(
        "cohort: the loss is a mean over all rows that go through together",
        "client/training/cohort.py",
        "losses = (whole / number_of_terms)[",
        "losses = (whole / number_of_terms.sum().clamp(min=1))[",
        ("client/training/test_cohort.py::test_with_every_setting_of_the_training",),
    ),
    Fault(
        "optimiser: what was kept is not loaded",
        "client/training/sequential.py",
        "        if key in by_key:\n",
        "        if key in by_key and not slot:\n",
        ("client/training/test_sequential.py::test_a_kept_optimiser_is_one_long_optimiser",),
    ),
    Fault(
        "optimiser: a cohort begins with new moments",
        "client/training/cohort.py",
        "rows = [\n                        torch.cat([whole_slots(job, name, shape).reshape(-1)",
        "rows = [\n                        0 * torch.cat([whole_slots(job, name, shape).reshape(-1)",
        ("client/training/test_cohort.py::test_kept_optimiser_states_go_on_from_where_each_client_was",),
    ),
    Fault(
        "optimiser: what a round does not train is forgotten",
        "client/training/sequential.py",
        "kept = {**job.optimizer_state, **_dump_optimizer(optimizer, parameters, job)}",
        "kept = _dump_optimizer(optimizer, parameters, job)",
        ("client/training/test_cohort.py::test_moments_of_what_a_round_does_not_train_are_kept",),
    ),
    Fault(
        "proximal term: without its half",
        "client/training/sequential.py",
        "settings.proximal_mu / 2 * _distance",
        "settings.proximal_mu * _distance",
        ("client/training/test_sequential.py::test_the_gradient_of_the_proximal_term",),
    ),
    Fault(
        "LoRA+: the ratio is the A side's",
        "client/training/job.py",
        "case Side.B:\n            return settings.learning_rate * settings.b_learning_rate_ratio",
        "case Side.A:\n            return settings.learning_rate * settings.b_learning_rate_ratio",
        ("client/training/test_cohort.py::test_the_b_side_moves_by_the_ratio",),
    ),
    Fault(
        "ranks: a client hands back more than its own rows",
        "client/training/sequential.py",
        "trained = {key: own_part(job, key, value).contiguous()",
        "trained = {key: value.contiguous()",
        ("client/training/test_ranks_and_penalties.py::test_a_lower_rank_trains_as_in_a_model_of_that_rank",),
    ),
    # -- rows --------------------------------------------------------------------------------------------------------
    Fault(
        "splits: validation rows are counted from where test rows begin",
        "data/rows.py",
        'parts.validation + starts.get("validation", 0)',
        'parts.validation + starts.get("test", 0)',
        ("test_api.py::test_list_of_clients_and_splits_of_their_own",),
    ),
    Fault(
        "splits: groups are taken apart",
        "data/partition/partition.py",
        "    if table.groups is None:\n        split = split_rows(",
        "    if table.groups is None or clients:\n        split = split_rows(",
        ("data/partition/test_partition.py::test_groups_never_straddle",),
    ),
    Fault(
        "splits: one row of validation is tested",
        "data/partition/splitting.py",
        "(place >= ends[:, 1])",
        "(place >= ends[:, 1] - (ends[:, 1] > ends[:, 0]))",
        ("data/partition/test_partition.py::test_complete_disjoint_and_mixed_alike",),
    ),
    Fault(
        "splits: what rounding owes is forgotten",
        "data/partition/allotting.py",
        "debt -= extra",
        "debt *= 0",
        ("data/partition/test_partition.py::test_apportion_rounds_and_carries",),
    ),
    Fault(
        "splits: every client is cut with one seed",
        "data/partition/partition.py",
        "derive_seed(seed, purpose, client)",
        "derive_seed(seed, purpose)",
        ("data/partition/test_partition.py::test_clients_of_equal_rows_are_cut_differently",),
    ),
    Fault(
        "splits: a client's cut hangs on its place among the others",
        "data/partition/partition.py",
        '[_random(seed, "split", client) for client in clients]',
        '[_random(seed, "split", str(number)) for number, _ in enumerate(clients)]',
        ("data/partition/test_partition.py::test_a_clients_cut_depends_on_that_client_alone",),
    ),
    Fault(
        "splits: of all clients with too many rows the same ones go",
        "data/partition/partition.py",
        '_random(seed, "max_examples", client)',
        '_random(seed, "max_examples", "")',
        ("data/partition/test_partition.py::test_of_clients_of_equal_rows_other_rows_are_kept",),
    ),
    Fault(
        "partition: every seed deals the same",
        "data/partition/partition.py",
        "rng = np.random.default_rng(seed)",
        "rng = np.random.default_rng(0)",
        ("data/partition/test_partition.py::test_seed_decides",),
    ),
    Fault(
        "held out: whoever is sampled first",
        "server/sampling.py",
        'derive_seed(seed, "held-out clients")',
        'derive_seed(0, "held-out clients")',
        ("runs/test_adaptation.py::test_who_is_held_out_hangs_on_the_seed_alone",),
    ),
    Fault(
        "padding: it is attended to",
        "tasks/classification.py",
        "laid(np.broadcast_to(np.int64(1), self.tokens.shape), fill=0)",
        "laid(np.broadcast_to(np.int64(1), self.tokens.shape), fill=1)",
        ("tasks/test_classification.py::test_a_batch_is_what_the_tokenizer_gives",),
    ),
    Fault(
        "packing: sentences of one row see each other",
        "models/layout.py",
        "seen = self.sentences[:, :, None] == self.sentences[:, None, :]",
        "seen = (self.sentences[:, :, None] >= 0) == (self.sentences[:, None, :] >= 0)",
        ("models/test_layout.py::test_a_token_sees_its_own_sentence_alone",),
    ),
    Fault(
        "seeds: a number and its text give one seed",
        "seeds.py",
        'f"{type(part).__name__}:{part}"',
        'f"{part}"',
        ("test_seeds.py",),
    ),
    # -- figures -----------------------------------------------------------------------------------------------------
    Fault(
        "figures: the weighted mean is the plain one",
        "statistics.py",
        "(numbers * shares).sum() / shares.sum()",
        "numbers.mean()",
        ("client/test_evaluation.py::test_figures_by_hand",),
    ),
    Fault(
        "figures: the worst client is the best",
        "statistics.py",
        "numbers.argmin()",
        "numbers.argmax()",
        ("client/test_evaluation.py::test_figures_by_hand",),
    ),
    Fault(
        "figures: the deviation of a sample",
        "statistics.py",
        "std=float(numbers.std())",
        "std=float(numbers.std(ddof=min(1, len(numbers) - 1)))",
        ("client/test_evaluation.py::test_figures_by_hand",),
    ),
    Fault(
        "majority: the most frequent label of the test rows",
        "client/evaluation.py",
        "np.bincount(np.asarray(train_labels))",
        "np.bincount(np.asarray(test_labels))",
        ("client/test_evaluation.py::test_majority_accuracy",),
    ),
    Fault(
        "evaluation: outputs stay in the order of their lengths",
        "client/evaluation.py",
        "torch.from_numpy(np.argsort(np.concatenate(places)))",
        "torch.from_numpy(np.sort(np.concatenate(places)))",
        ("client/test_evaluation.py::test_outputs_are_put_back_in_the_order_of_the_rows",),
    ),
    Fault(
        "chosen round: by the plain mean over clients",
        "engines/rounds.py",
        (
            "if progress.chosen_score is None or scores.weighted_mean > progress.chosen_score:\n"
            "        progress.chosen_round, progress.chosen_score = round, scores.weighted_mean"
        ),
        (
            "if progress.chosen_score is None or scores.mean > progress.chosen_score:\n"
            "        progress.chosen_round, progress.chosen_score = round, scores.mean"
        ),
        ("client/test_evaluation.py::test_the_round_is_chosen_by_the_mean_that_is_weighted_by_rows",),
    ),
    Fault(
        "chosen round: of equal rounds the last",
        "engines/rounds.py",
        "scores.weighted_mean > progress.chosen_score:",
        "scores.weighted_mean >= progress.chosen_score:",
        ("client/test_evaluation.py::test_the_round_is_chosen_on_validation",),
    ),
    Fault(
        "chosen round: by the test rows",
        "engines/rounds.py",
        'fleet.evaluate(payloads, "validation", moment)',
        'fleet.evaluate(payloads, "test", moment)',
        ("client/test_evaluation.py::test_opposite_test_labels_leave_the_chosen_round",),
    ),
    Fault(
        "test: the chosen round's figures are of the last round's server",
        "engines/summary.py",
        "server.payloads(server.clients, round + 1, state, folder.server_states.client_versions(round))",
        "server.payloads(server.clients, round + 1)",
        ("runs/test_export.py::test_the_card_states_the_score_of_the_tensors_beside_it",),
    ),
    Fault(
        "evaluation: the last round may be left out",
        "engines/rounds.py",
        "return round % self.evaluation.evaluate_every == 0 or round == self.rounds",
        "return round % self.evaluation.evaluate_every == 0",
        ("client/test_evaluation.py::test_evaluate_every_skips_rounds_but_not_the_last",),
    ),
    # -- the disk ----------------------------------------------------------------------------------------------------
    Fault(
        "disk: metrics.jsonl is written without fsync",
        "store/lines.py",
        "                os.fsync(file.fileno())\n",
        "",
        ("store/test_folder.py::test_what_a_round_writes_is_safe_on_the_disk_before_the_round_exists",),
    ),
    Fault(
        "disk: tensors are read in no order of their own",
        "store/files.py",
        "dict(sorted(load(content).items()))",
        "load(content)",
        ("behaviour/test_resume.py::test_tensors_are_read_in_the_order_of_their_names",),
    ),
    Fault(
        "disk: other files are written without fsync",
        "store/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        ("store/test_folder.py::test_what_a_round_writes_is_safe_on_the_disk_before_the_round_exists",),
    ),
    Fault(
        "commit: a round exists before its files are there",
        "store/run_folder.py",
        "        self._writes.settle()\n        for name in MEASURED:",
        "        for name in MEASURED:",
        ("store/test_folder.py::test_a_round_exists_only_when_all_its_files_are_safe",),
    ),
    Fault(
        "commit: before the round's lines are in metrics.jsonl",
        "engines/rounds.py",
        "        progress.metrics_bytes = store.append_metrics(lines)\n        progress.round = round\n",
        (
            "        progress.round = round\n        store.commit(progress)\n"
            "        progress.metrics_bytes = store.append_metrics(lines)\n"
        ),
        ("behaviour/test_resume.py::test_killed_at_any_write_it_resumes_to_the_same_bytes[plain-3]",),
    ),
    Fault(
        "roll back: lines of a round that does not exist stay",
        "store/lines.py",
        "write_atomically(self._path, content[:size])",
        "write_atomically(self._path, content)",
        ("behaviour/test_resume.py::test_killed_at_any_write_it_resumes_to_the_same_bytes[plain-3]",),
    ),
    Fault(
        "roll back: clients' files of a round that does not exist stay",
        "store/client_states.py",
        "while rounds and rounds[-1] > round:",
        "while rounds and rounds[-1] > round + 1:",
        ("store/test_folder.py::test_what_an_interruption_left_is_removed",),
    ),
    Fault(
        "files: what nobody needs may outlive the end of a run",
        "engines/simulator.py",
        "    folder.settle()  # a finished",
        "    # a finished",
        ("behaviour/test_resume.py::test_a_finished_run_has_no_file_that_nobody_needs",),
    ),
    Fault(
        "files: the chosen round's go with the next round",
        "store/run_folder.py",
        "rounds = {progress.round} if progress.chosen_round is None else {progress.round, progress.chosen_round}",
        "rounds = {progress.round}",
        ("store/test_folder.py::test_exactly_the_files_of_the_last_and_the_chosen_round_are_kept",),
    ),
    Fault(
        "held version: a resumed server takes clients for older than they are",
        "store/server_states.py",
        "return {client: trained - 1 for client, trained in",
        "return {client: max(trained - 2, 0) for client, trained in",
        ("behaviour/test_resume.py::test_the_servers_file_says_when_each_client_trained_last",),
    ),
    Fault(
        "resume: another base model is not noticed",
        "engines/beginning.py",
        'return progress.fingerprints.get("base_model") == adapted_fingerprint(federation.model)',
        'return bool(progress.fingerprints.get("base_model"))',
        ("behaviour/test_resume.py::test_another_base_model_is_refused",),
    ),
    # -- what comes after a run --------------------------------------------------------------------------------------
    Fault(
        "report: a round that ends while a running run is read is taken for damage",
        "store/begun.py",
        "if read_commit(path) == commit:",
        "if read_commit(path) is not None:",
        ("runs/test_report_live.py::test_a_round_that_ends_while_its_files_are_read_is_no_damage",),
    ),
    Fault(
        "report: the server answers whatever name leads to it",
        "runs/report/serving.py",
        "return not server.is_private or name in",
        "return name is not None or name in",
        ("runs/test_report_live.py::test_a_page_of_another_site_cannot_read_the_report_through_the_browser",),
    ),
    Fault(
        "export: the scale of a stacked adapter is by its rank, rslora or not",
        "runs/export/folders.py",
        "model.scaling[module] * (math.sqrt(rank) if config.use_rslora else rank)",
        "model.scaling[module] * rank",
        (
            "behaviour/test_family.py::test_peft_alone_gives_the_same_logits",
            "behaviour/test_family.py::test_layers_of_several_ranks_keep_their_own_scale",
        ),
    ),
    Fault(
        "export: what was taken out of the base is added once more",
        "runs/export/folders.py",
        "parts.append(-model.initial[key] if key.factor is Factor.B else model.initial[key])",
        "parts.append(model.initial[key])",
        ("runs/test_export.py::test_peft_alone_gives_the_same_logits",),
    ),
    Fault(
        "every client answers with the first one's predictions",
        "runs/predict/predictor.py",
        "said_of_row = by_client[client][place]",
        "said_of_row = by_client[clients[0]][place]",
        ("runs/test_predict.py::test_an_export_says_the_same_and_all_clients_at_once_too",),
    ),
    Fault(
        "an adapter is asked on any base of its shape",
        "runs/export/loading.py",
        "if about.base.fingerprint not in (None, _made(folder, lambda: plain_fingerprint(plain, config))):",
        "if False:",
        ("runs/test_predict.py::test_clients_and_folders_that_are_not_there_are_told",),
    ),
    Fault(
        "an export that was changed is asked",
        "runs/export/about.py",
        "if changed is not None:",
        "if False:",
        ("runs/test_export.py::test_a_flipped_bit_in_any_file_of_an_export_is_told",),
    ),
    Fault(
        "a damaged last name of a table makes it an older one",
        "store/seals.py",
        "not (older and {*table} <= {*older})",
        "not older",
        ("store/test_seals.py",),
    ),
    Fault(
        "a line that a site's list lacks is not missed",
        "client/sent.py",
        "hashlib.sha256(last + text)",
        "hashlib.sha256(text)",
        ("client/test_sent.py::test_a_line_that_is_lacking_is_told",),
    ),
    Fault(
        "the tag of a word is the one before it",
        "tasks/tagging.py",
        "tags[word] = tag",
        "tags[word - 1] = tag",
        ("runs/test_predict.py::test_predictions_give_the_figures_of_the_run",),
    ),
    Fault(
        "newcomers: the mean of personal tensors is not weighted",
        "runs/personal.py",
        'return int(self._about[client]["train_examples"]) if self.recipe.weighting == "num_examples" else 1',
        "return 1",
        ("runs/test_adaptation.py::test_a_start_from_other_clients_is_their_mean",),
    ),
    Fault(
        "mixing: a client's references are among its test rows",
        "client/evaluation.py",
        "self.clients[client].train, np.random",
        "self.clients[client].test, np.random",
        ("behaviour/test_mixing.py",),
    ),
    Fault(
        "chat: the user's turns are learned too",
        "tasks/sequences.py",
        'batch["labels"][asked == 0] = IGNORED',
        'batch["labels"][asked == 2] = IGNORED',
        ("tasks/test_conversations.py::test_the_loss_is_that_of_each_answer_given_all_before_it",),
    ),
    Fault(
        "chat: a conversation that is cut does not keep room for its first answer",
        "tasks/dialogues.py",
        "room = max(least, self.longest - answer)",
        "room = max(least, self.longest - 1)",
        ("tasks/test_conversations.py::test_one_exchange_is_learned_as_a_generation_with_chat_learns_it",),
    ),
    Fault(
        "dpo: the other answer is preferred",
        "tasks/preferences.py",
        "rewards = self.beta * (base - own).view(-1, 2)",
        "rewards = self.beta * (base - own).view(-1, 2).flip(1)",
        ("tasks/test_preferences.py::test_the_loss_is_that_of_the_paper_written_out",),
    ),
    Fault(
        "dpo: in a cohort the reference is the client's own model",
        "tasks/adapter_off.py",
        "        layer.adapters_off = True",
        "        layer.adapters_off = False",
        ("tasks/test_sequences.py::test_a_cohort_comes_to_what_one_at_a_time_comes_to",),
    ),
    Fault(
        "plan: bytes are counted as if all clients trained in every round",
        "cost/traffic.py",
        "server.client_versions[client] = round - 1",
        "server.client_versions.update(dict.fromkeys(names, round - 1))",
        ("cost/test_plan.py::test_clients_that_skip_rounds_are_counted_exactly",),
    ),
    # -- the audit: what attacks come to -----------------------------------------------------------------------------
    Fault(
        "audit: rows that score alike count as told apart",
        "runs/audit/guessing.py",
        "0.5 * (members[:, None] == others)",
        "1.0 * (members[:, None] == others)",
        ("runs/audit/test_guessing.py::test_the_area_is_that_of_scikit_learn",),
    ),
    Fault(
        "audit: δ explains no right guesses",
        "runs/audit/guessing.py",
        "return min(1.0, beta + 2 * canaries * delta * alpha)",
        "return min(1.0, beta)",
        ("runs/audit/test_guessing.py",),
    ),
    Fault(
        "audit: the canaries with the lowest scores are said to be in",
        "runs/audit/canaries.py",
        'np.argsort(-each, kind="stable")',
        'np.argsort(each, kind="stable")',
        ("runs/audit/test_audit.py::test_controls_fire",),
    ),
    Fault(
        "audit: a loss that has risen is taken for a row that was learned",
        "runs/audit/membership.py",
        "gained = row_losses(subject, start, rows) - row_losses(subject, state, rows)",
        "gained = row_losses(subject, state, rows) - row_losses(subject, start, rows)",
        ("runs/audit/test_audit.py::test_controls_fire",),
    ),
    Fault(
        "audit: protected rows are drawn more often than the noise is for",
        "runs/audit/membership.py",
        "rows = subject.federation.rows.partition.clients[client].train",
        "rows = members[client]",
        ("runs/audit/test_audit.py::test_a_protected_update_is_trained_on_all_rows_as_its_noise_is_computed_for_them",),
    ),
    Fault(
        "audit: a sum is the first client's update",
        "runs/audit/training.py",
        "summed[key] = summed[key] + part if key in summed else part",
        "summed.setdefault(key, part)",
        ("runs/audit/test_audit.py::test_what_a_server_sees_of_a_sum_is_the_weighted_mean",),
    ),
    # -- controls and baselines ---------------------------------------------------------------------------------------
    Fault(
        "halves: both draw one dropout",
        "client/halves.py",
        'replace(job, rows=two, seed=derive_seed(job.seed, "other half"))',
        "replace(job, rows=two)",
        ("client/test_halves.py",),
    ),
    Fault(
        "pooled: as few steps as one client takes",
        "federation/pooling.py",
        "training.local_steps * in_a_round",
        "training.local_steps",
        ("algorithms/test_pooled.py::test_it_is_the_training_of_one_client_that_has_all_rows",),
    ),
    Fault(
        "pooled: rows of clients outside are among them",
        "federation/pooling.py",
        "for client in clients])",
        "for client in site.rows])",
        ("algorithms/test_pooled.py::test_rows_of_clients_that_are_held_out_are_not_among_them",),
    ),
    Fault(
        "potara: training begins from the merge",
        "client/state.py",
        "taken = algorithm.begin if for_training else algorithm.absorb",
        "taken = algorithm.absorb",
        ("algorithms/test_potara.py::test_the_federated_model_is_fedit_and_both_ends_are_its_clients",),
    ),
    Fault(
        "potara: the variance of a half is taken for that of the mean of both",
        "algorithms/potara.py",
        "precision = 4 / _distance(",
        "precision = 2 / _distance(",
        ("algorithms/test_potara.py::test_the_weight_is_that_of_the_formula",),
    ),
    Fault(
        "fedtreelora: a layer is cut by the distances of all layers",
        "algorithms/fedtreelora.py",
        "silhouette(own, cut) if",
        "silhouette(whole, cut) if",
        ("algorithms/test_fedtreelora.py::test_groups_are_nested_cuts_of_best_silhouette",),
    ),
    Fault(
        "fedtreelora: layers are in the order of the alphabet",
        "algorithms/fedtreelora.py",
        "sorted({_depth(key) for key in tensors if _is_expert(key)})",
        "sorted({_depth(key) for key in tensors if _is_expert(key)}, key=str)",
        ("algorithms/test_fedtreelora.py::test_a_shallow_layer_has_one_group_and_a_deep_one_two",),
    ),
    Fault(
        "partial pooling: a late warm-up of a head is sent as a movement",
        "algorithms/partial_pooling.py",
        "before[own].double() if round == 1 else start - before[common].double()",
        "before[own].double()",
        (
            "algorithms/test_partial_pooling.py::test_an_own_part_draws_the_common_one_and_so_does_the_warm_up_of_a_head",
        ),
    ),
    Fault(
        "partial pooling: a column that is not pooled is lost",
        "algorithms/partial_pooling.py",
        "taken[key] = tensors[key].clone()",
        "taken[key] = initial[key].clone()",
        ("algorithms/test_partial_pooling.py::test_columns_of_b_that_are_not_pooled_are_each_clients_own",),
    ),
    Fault(
        "partial pooling: own parts do not draw the common one",
        "algorithms/partial_pooling.py",
        "drawn = 0.0 if halves else self.anchor",
        "drawn = 0.0",
        (
            "algorithms/test_partial_pooling.py::test_what_is_common_comes_to_be_the_mean_of_clients_that_stay_where_they_are",
        ),
    ),
    Fault(
        "partial pooling: where nothing can be told, all is shared",
        "algorithms/partial_pooling.py",
        "torch.where(told, shares, _shares(state, round).double())",
        "torch.where(told, shares, 0.0)",
        ("algorithms/test_partial_pooling.py::test_where_nothing_can_be_told_the_last_share_holds",),
    ),
    Fault(
        "class prior: it is in what a client sends",
        "client/site.py",
        "return replace(result, tensors=priors.taken_off(client, result.tensors), halves=halves)",
        "return result",
        ("behaviour/test_class_priors.py::test_what_is_known_stays_at_the_client",),
    ),
    Fault(
        "class prior: an export lacks it",
        "runs/personal.py",
        "return own if self._priors is None else self._priors.added(client, own)",
        "return own",
        ("behaviour/test_class_priors.py::test_a_client_is_tested_with_what_its_files_say",),
    ),
    Fault(
        "class prior: means over clients have it",
        "runs/personal.py",
        "return tensors if self._priors is None else self._priors.taken_off(client, tensors)",
        "return tensors",
        ("behaviour/test_class_priors.py::test_what_is_known_stays_at_the_client",),
    ),
    Fault(
        "class prior: a newcomer has none",
        "runs/onboarding.py",
        "candidates = [federation.class_priors.added(client, each) for each in candidates]",
        "pass",
        ("behaviour/test_class_priors.py::test_a_newcomer_has_its_own",),
    ),
    Fault(
        "partial pooling: A is sent in a round that does not train it",
        "algorithms/partial_pooling.py",
        "return RECEIVED if self.share_a else FROZEN",
        "return SHARED if self.share_a else FROZEN",
        ("algorithms/test_partial_pooling.py::test_between_rounds_that_train_a_it_is_frozen_and_not_sent",),
    ),
    Fault(
        "what left: of clients of low rank a part is said to stay",
        "server/sharing.py",
        "leaving = size if mixed_ranks else sizes_sent",
        "leaving = sizes_sent",
        ("server/test_what_leaves.py::test_with_ranks_of_their_own_no_part_is_said_to_stay",),
    ),
    Fault(
        "what left: the first round stands for all",
        "server/sharing.py",
        'summary.get("sharing_plan_of_all_rounds", summary.get("sharing_plan", []))',
        'summary.get("sharing_plan", [])',
        ("server/test_what_leaves.py::test_what_leaves_in_any_round_has_left_the_run",),
    ),
    Fault(
        "what left: a tensor that another stands for counts as kept",
        "commands/shared/methods.py",
        "stays_itself(key) and not any(algorithm.leaves(key, round) for round in ROUNDS)",
        "stays_itself(key)",
        ("server/test_what_leaves.py::test_the_list_of_methods_keeps_only_what_does_not_leave",),
    ),
    Fault(
        "costs: rounds of two halves are as long as others",
        "cost/pace.py",
        "(training.local_steps or DEFAULT_LOCAL_STEPS) * (1 + algorithm.trains_halves(round))",
        "(training.local_steps or DEFAULT_LOCAL_STEPS)",
        ("cost/test_plan.py::test_training_on_halves_of_rows_is_counted",),
    ),
    Fault(
        "ravan: a core is sent without the number that scales it",
        "algorithms/ravan.py",
        "number * kept[key] for key",
        "kept[key] for key",
        ("algorithms/test_methods.py::test_ravan_sends_each_core_times_its_number_which_is_1_again_then",),
    ),
    Fault(
        "gates: a merged model lacks them",
        "models/gates.py",
        "layer.scaling[adapter] *= multiplier",
        "layer.scaling[adapter] *= 1",
        ("models/test_gates.py::test_a_merged_model_has_what_the_gates_left_of_each_adapter",),
    ),
    Fault(
        "LoRA-XS: all adapters have the same directions",
        "models/from_weights.py",
        "a[place::count], b[:, place::count]",
        "a[: len(a) // count], b[:, : len(a) // count]",
        ("models/test_adapted.py::test_each_of_several_lora_xs_adapters_has_an_r_of_its_own",),
    ),
    Fault(
        "permuted classes: the test rows keep theirs",
        "data/rows.py",
        "own = np.concatenate([*clients[client]])",
        "own = np.concatenate([clients[client].train, clients[client].validation])",
        ("data/test_permuted.py",),
    ),
    Fault(
        "a plan's memory: tensors beside the model's are left out",
        "cost/memory.py",
        "cohort * (client + beside + halves)",
        "cohort * (client + halves)",
        ("cost/test_plan.py::test_memory_counts_tensors_beside_the_models_and_halves",),
    ),
)


def stale(fault: Fault) -> str:
    """Return why a fault cannot be planted, or an empty text."""
    path = ROOT / "src" / "fedsa" / fault.file
    if not path.is_file():
        return f"there is no src/fedsa/{fault.file}"
    count = path.read_text(encoding="utf-8").count(fault.old)
    return "" if count == 1 else f"its old text is {count} times in src/fedsa/{fault.file}"


def copy(to: Path) -> None:
    """Copy what the tests need; times of files stay, so compiled modules do too."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, to / name)
    shutil.copy2(ROOT / "pyproject.toml", to)


def preload() -> None:
    """Import what takes longest and is never changed; each fault's process is a copy of this one."""
    for name in LIBRARIES:
        importlib.import_module(name)
    if "fedsa" in sys.modules:
        raise SystemExit("fedsa is imported already: its copies could not be")


def start(place: Path, tests: Sequence[str]) -> int:
    """Begin to run tests of a copy in a process of their own, and return its number; ``place/log`` gets the output."""
    process = os.fork()
    if process:
        return process
    signal.alarm(HOURGLASS)
    os.chdir(place)
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["PYTHONPATH"] = str(place / "src")  # of processes that tests start
    sys.path.insert(0, str(place / "src"))
    names = [name if name.startswith("src/") else f"tests/{name}" for name in tests]
    try:
        code = int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *QUIET, *names]))
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os._exit(code)


def result(status: int, place: Path) -> tuple[int, str]:
    """Return pytest's exit code (1, too, if it did not come to an end) and what it printed."""
    code, text = os.waitstatus_to_exitcode(status), (place / "log").read_text(encoding="utf-8", errors="replace")
    return (1, f"FAILED tests did not come to an end in {HOURGLASS} s") if code == -signal.SIGALRM else (code, text)


def first_failure(text: str) -> str:
    """Return the name of the test that failed, as pytest's summary has it."""
    lines = [line for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" - ")[0].partition(" ")[2].removeprefix("tests/") if lines else "?"


def judged(fault: Fault, code: int, text: str) -> tuple[str, str]:
    """Return ``caught`` and by which test, or ``survived``, or ``broken`` and why."""
    if code == 1:
        return "caught", first_failure(text)
    return ("survived", " ".join(fault.tests)) if code == 0 else ("broken", f"pytest says {code}: {text[-300:]}")


def tried(faults: Sequence[Fault], jobs: int) -> Iterator[tuple[Fault, str, str]]:
    """Plant each fault, some at a time, and yield it with what came of it."""
    waiting, running = list(faults), dict[int, tuple[Fault, tempfile.TemporaryDirectory[str]]]()
    while waiting or running:
        if waiting and len(running) < jobs:
            fault = waiting.pop(0)
            reason = stale(fault)
            if reason:
                yield fault, "broken", reason
                continue
            folder = tempfile.TemporaryDirectory(prefix="fedsa-fault-")
            copy(Path(folder.name))
            path = Path(folder.name) / "src" / "fedsa" / fault.file
            path.write_text(path.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
            running[start(Path(folder.name), fault.tests)] = fault, folder
            continue
        process, status = os.wait()
        fault, folder = running.pop(process)
        with folder:
            yield fault, *judged(fault, *result(status, Path(folder.name)))


def sound(faults: Sequence[Fault]) -> None:
    """Leave with a message if the tests do not pass without a fault: they would catch anything."""
    names = list(dict.fromkeys(name for fault in faults for name in fault.tests))
    with tempfile.TemporaryDirectory(prefix="fedsa-fault-") as folder:
        copy(Path(folder))
        _, status = os.waitpid(start(Path(folder), names), 0)
        code, text = result(status, Path(folder))
    if code:
        raise SystemExit(f"without any fault the tests fail ({code}):\n{text[-3000:]}")


def main() -> None:
    """Plant the faults and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="faults whose name has this in it; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument("--no-baseline", action="store_true", help="do not first see the tests pass without a fault")
    parser.add_argument("--check", action="store_true", help="only say which faults do not fit the source any more")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if any(word in fault.name for word in options.only or [""])]
    if not faults:
        raise SystemExit(f"no fault has {' or '.join(options.only)!r} in its name")
    if options.check:
        wrong = [f"{fault.name}: {reason}" for fault in faults if (reason := stale(fault))]
        print(*wrong, f"{len(faults) - len(wrong)} of {len(faults)} faults fit the source", sep="\n")
        raise SystemExit(bool(wrong))
    started = time.perf_counter()
    preload()
    if not options.no_baseline:
        sound(faults)
        print(f"without a fault the tests pass ({time.perf_counter() - started:.0f} s)", flush=True)
    counts = {"caught": 0, "survived": 0, "broken": 0}
    for fault, outcome, about in tried(faults, options.jobs):
        counts[outcome] += 1
        print(f"{outcome:9} {fault.name:76} {about}", flush=True)
    figures = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"{len(faults)} faults: {figures} ({time.perf_counter() - started:.0f} s)")
    raise SystemExit(counts["caught"] != len(faults))


if __name__ == "__main__":
    main()
