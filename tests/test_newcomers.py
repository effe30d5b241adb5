from __future__ import annotations
from pathlib import Path
from conftest import write_rows

def test_smoke(fedsa_command, recipe_file, tmp_path: Path) -> None:
    outs=[]
    r = recipe_file("adaptation.share_personal=true","holdout_clients=0.3","evaluation.global_model=fit","data.partition={kind='iid', clients=6}")
    o = fedsa_command("run", r, "--out", tmp_path/"run")
    outs.append(o.out+o.err)
    write_rows(tmp_path / "new.csv", 40, seed=5)
    o = fedsa_command("adapt", tmp_path/"run", "--data", tmp_path/"new.csv", "--compare", "--steps", 5, "--to", tmp_path / "to")
    outs.append(o.out+o.err)
    print((tmp_path/"to"/"README.md").read_text())
    print(fedsa_command("export", tmp_path/"run", "--all", "--to", tmp_path / "all"))
    print(*outs)
    assert 0
