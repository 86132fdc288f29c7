from __future__ import annotations

import pickle

import pytest
from torch.utils.data import DataLoader, Dataset

from mlmx.errors import Problem, UserError, nearest, user_error

PROBLEMS = (Problem("corpus.path:12", "is not UTF-8."), Problem("objective.mask_rato", "no such setting.", "mask_ratio"))


class Failing(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise ValueError("the cause: it is told before the error itself")
        except ValueError as cause:
            raise UserError(PROBLEMS) from cause


def test_an_error_is_the_same_after_its_way_between_processes():
    assert pickle.loads(pickle.dumps(UserError(PROBLEMS))).problems == PROBLEMS


def test_an_error_in_a_loader_worker_tells_the_same_problems():
    with pytest.raises(UserError) as caught:
        list(DataLoader(Failing(), num_workers=1))
    assert str(caught.value) == str(UserError(PROBLEMS))
    assert [problem.where for problem in caught.value.problems] == ["corpus.path:12", "objective.mask_rato"]


def test_a_message_of_several_lines_stays_one_problem():
    error = user_error("corpus.name", "cannot be loaded,\nof these\nnone")
    assert UserError(f"Traceback ...\nmlmx.errors.UserError: {error}").problems == error.problems


def test_the_nearest_name_is_close_or_none():
    assert nearest("mask_rato", ["mask_ratio", "max_steps"]) == "mask_ratio"
    assert nearest("zzz", ["mask_ratio"]) is None
