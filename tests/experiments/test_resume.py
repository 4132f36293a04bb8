"""What a finished stage knows of the annotations that it has read."""

from __future__ import annotations

from configs import cem_real
from elk_jax.experiments import resume
from elk_jax.experiments.parse import parse
from elk_jax.tasks.run import Run
from tests.data.sources import dbt_files


def test_annotations_of_volumes_do_not_depend_on_where_their_files_are(tmp_path):
    """A source names a link to its folder, say, or each machine has it in another place."""
    (tmp_path / "first").mkdir()
    (tmp_path / "dbt").symlink_to(dbt_files.write(tmp_path / "first"))
    config = cem_real.get_config("tiny")
    config.data.real.spec = f"bcs_dbt:{tmp_path / 'dbt'}"
    experiment = parse(config)
    known = lambda: resume.annotation_hash(Run(experiment, tmp_path / "run", None), experiment.stages["evaluate"])
    before = known()
    (tmp_path / "dbt").unlink()
    (tmp_path / "dbt").symlink_to((tmp_path / "first").rename(tmp_path / "second"))
    assert before and known() == before
    (boxes,) = (tmp_path / "second").glob("*boxes-test*")
    boxes.write_text(boxes.read_text().replace(",2,4,40,", ",2,4,41,"))
    assert known() not in ("", before)
