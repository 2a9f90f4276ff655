"""Puts what a process says of itself on the wire and back."""

from collections.abc import Iterable

from cluster.checkpoint_review import CheckpointReview, Note
from cluster.facts import Folder, ProcessFacts, StoreAnswer
from penstock.v1 import worker_pb2


def facts_to_pb(facts: ProcessFacts) -> worker_pb2.DiagnoseResponse:
    folder, store = facts.run_dir, facts.store
    return worker_pb2.DiagnoseResponse(
        unix_seconds=facts.unix_s,
        machine=facts.machine,
        versions=facts.versions,
        wire_version=facts.wire_version,
        memlock_bytes=facts.memlock_bytes,
        open_files_limit=facts.max_open_files,
        open_files=facts.num_open_files,
        cpus=facts.num_cpus,
        threads=facts.num_threads,
        run_dir=_folder_to_pb(folder) if folder else None,
        listening=facts.listening,
        secrets_mode=facts.secrets_mode,
        store=_store_to_pb(store) if store else None,
        checks_content=facts.checks_content,
        required_transport=facts.required_transport or "",
        memory_bytes_per_second=facts.memory_bytes_per_s,
        checkpoint=_review_to_pb(facts.review) if facts.review else None,
        choices=facts.choices,
        tls_ports=sorted(facts.tls_ports),
    )


def facts_from_pb(message: worker_pb2.DiagnoseResponse) -> ProcessFacts:
    def given(name: str) -> int | None:
        return getattr(message, name) if message.HasField(name) else None

    return ProcessFacts(
        unix_s=message.unix_seconds,
        machine=message.machine,
        versions=dict(message.versions),
        wire_version=message.wire_version,
        memlock_bytes=given("memlock_bytes"),
        max_open_files=given("open_files_limit"),
        num_open_files=message.open_files,
        num_cpus=message.cpus,
        num_threads=message.threads,
        run_dir=_folder_from_pb(message.run_dir) if message.HasField("run_dir") else None,
        listening=tuple(message.listening),
        secrets_mode=given("secrets_mode"),
        store=_store_from_pb(message.store) if message.HasField("store") else None,
        checks_content=message.checks_content,
        required_transport=message.required_transport or None,
        memory_bytes_per_s=message.memory_bytes_per_second,
        review=_review_from_pb(message.checkpoint) if message.HasField("checkpoint") else None,
        choices=dict(message.choices),
        tls_ports=frozenset(message.tls_ports),
    )


def _folder_to_pb(folder: Folder) -> worker_pb2.Folder:
    return worker_pb2.Folder(
        path=folder.path,
        file_system=folder.file_system,
        num_bytes=folder.num_bytes,
        free_bytes=folder.free_bytes,
        mode=folder.mode,
    )


def _folder_from_pb(message: worker_pb2.Folder) -> Folder:
    return Folder(
        path=message.path,
        file_system=message.file_system,
        num_bytes=message.num_bytes,
        free_bytes=message.free_bytes,
        mode=message.mode,
    )


def _store_to_pb(store: StoreAnswer) -> worker_pb2.StoreAnswer:
    return worker_pb2.StoreAnswer(
        address=store.address, seconds=store.seconds, problem=store.problem
    )


def _store_from_pb(message: worker_pb2.StoreAnswer) -> StoreAnswer:
    return StoreAnswer(address=message.address, seconds=message.seconds, problem=message.problem)


def _review_to_pb(review: CheckpointReview) -> worker_pb2.CheckpointReview:
    def notes(given: tuple[Note, ...]) -> list[worker_pb2.CheckpointNote]:
        return [worker_pb2.CheckpointNote(file=n.file, why=n.why, keys=n.keys) for n in given]

    return worker_pb2.CheckpointReview(ignored=notes(review.ignored), unknown=notes(review.unknown))


def _review_from_pb(message: worker_pb2.CheckpointReview) -> CheckpointReview:
    def notes(given: Iterable[worker_pb2.CheckpointNote]) -> tuple[Note, ...]:
        return tuple(Note(each.file, each.why, tuple(each.keys)) for each in given)

    return CheckpointReview(ignored=notes(message.ignored), unknown=notes(message.unknown))
