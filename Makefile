# The developer's whole interface. `make` alone checks everything that a change must pass.
.PHONY: all install test lint bench docs

all: lint test

install:
	pip install -e ".[test,dev,bench]" -c constraints.txt

test:
	pytest -n 2 --dist loadgroup

lint:
	ruff check .
	ruff format --check .
	basedpyright

bench:
	luthier bench tokenizers
	luthier bench vectors
	luthier bench kernels
	luthier bench model
	luthier bench training

docs:
	python docs/make_help.py
