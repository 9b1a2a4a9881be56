# `make quickstart` and `make test` set everything up by themselves: a virtual environment in .venv, and the pinned packages.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs
MINIMUM := .venv-minimum
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

CARRIED := spaces_demo/checkpoints/ddpm-vlb-digits/pipeline.py

.PHONY: quickstart test test-minimum demo screenshots bench bench-training readme same-numbers community docs types lint clean

quickstart: $(READY)
	$(RUN) training/quickstart.py

# A file's tests stay in one process, for what they share. One more process than processors: tests wait for servers, browsers
# and other processes.
test: $(READY)
	$(RUN) -m pytest --numprocesses $$($(RUN) -c 'import os; print((os.cpu_count() or 1) + 1)') --dist loadfile \
		--no-loadscope-reorder -r s

# The lowest versions that pyproject.toml declares give the numbers of today's. On Linux torch brings CUDA along: a download of
# 3.5 GB, 6.2 GB on the disk, for want of a CPU build on the package index; one that pip finds elsewhere is taken.
test-minimum: $(READY) $(MINIMUM)/.ready
	$(RUN) tests/minimum.py runs/minimum
	$(MINIMUM)/bin/python tests/minimum.py runs/minimum --compare

demo: $(READY) $(CARRIED)
	$(RUN) spaces_demo/app.py $(if $(PORT),--port $(PORT)) $(foreach model,$(MODEL),--model $(model))

# The package in one file, for where it is not installed: it travels with the demo.
$(CARRIED): $(READY) $(wildcard ddpm_vlb/*.py ddpm_vlb/*/*.py) model_cards/template.md
	$(RUN) -c 'import sys; from ddpm_vlb.hub.standalone import standalone_source; print(standalone_source(), end="", file=open(sys.argv[1], "w", encoding="utf-8"))' $@

# The demo's pictures, from a run of its tests in a browser.
screenshots: $(READY)
	$(RUN) -m pytest tests/test_demo_browser.py --screenshots runs/screenshots
	cp runs/screenshots/demo-{bound,score}-{en-desktop-light,ja-desktop-dark}.png spaces_demo/pictures/

# Measurements, kept in runs/benchmarks; `make readme` puts them into the pages. MNIST=t10k-images-idx3-ubyte.gz adds MNIST,
# MNIST_TRAIN=train-images-idx3-ubyte.gz beside it its calibration, and OTHERS=images.npz images that are no digits.
bench: $(READY) runs/quickstart/report.json
	@mkdir -p runs/benchmarks
	$(RUN) tests/benchmarks/cost.py $(if $(MNIST),--mnist $(MNIST)) | tee runs/benchmarks/cost.txt
	$(RUN) tests/benchmarks/step.py | tee runs/benchmarks/step.txt
	$(RUN) tests/benchmarks/sweep.py | tee runs/benchmarks/sweep.txt
	$(RUN) tests/benchmarks/host.py | tee runs/benchmarks/host.txt
	$(if $(FULL_SIZE),$(RUN) tests/benchmarks/full_size.py $(FULL_SIZE) | tee runs/benchmarks/full_size.txt)
	$(RUN) tests/benchmarks/rao_blackwell.py | tee runs/benchmarks/rao_blackwell.txt
	$(RUN) tests/benchmarks/sampling.py $(if $(MNIST),--mnist $(MNIST)) | tee runs/benchmarks/sampling.txt
	$(RUN) tests/benchmarks/worlds.py | tee runs/benchmarks/worlds.txt
	$(RUN) tests/benchmarks/calibration.py $(if $(MNIST_TRAIN),--mnist $(MNIST) --mnist-train $(MNIST_TRAIN)) \
		| tee runs/benchmarks/calibration.txt
	$(RUN) tests/benchmarks/likelihoods.py | tee runs/benchmarks/likelihoods.txt
	$(RUN) tests/benchmarks/detect.py $(if $(MNIST),--mnist $(MNIST) $(if $(OTHERS),--others $(OTHERS))) | tee runs/benchmarks/detect.txt
	$(RUN) tests/benchmarks/classify.py --plot runs/benchmarks/classify.png | tee runs/benchmarks/classify.txt
	$(RUN) tests/benchmarks/codec.py $(if $(MNIST_TRAIN),--mnist $(MNIST) --mnist-train $(MNIST_TRAIN)) \
		--plot runs/benchmarks/codec.png | tee runs/benchmarks/codec.txt
	$(RUN) tests/benchmarks/demo.py | tee runs/benchmarks/demo.txt

# The recipes of training side by side, more than half an hour on two cores, and the shipped digits beside those of digits.yaml,
# 15 minutes. Runs go on where they were stopped; those that had ended are not trained again.
bench-training: $(READY)
	@mkdir -p runs/benchmarks
	$(RUN) tests/benchmarks/training.py --steps | tee runs/benchmarks/training_steps.txt
	$(RUN) tests/benchmarks/training.py | tee runs/benchmarks/training.txt
	$(RUN) training/train_vlb_ddpm.py --config training/configs/digits.yaml --output_dir runs/digits --resume_from_checkpoint latest
	$(RUN) -m ddpm_vlb compare spaces_demo/checkpoints/ddpm-vlb-digits runs/digits/pipeline --dataset digits --target-se 0.002 \
		| tee runs/benchmarks/writers.txt

readme: bench bench-training
	$(RUN) tests/benchmarks/write_readme.py

# Whether the working tree gives the numbers of an older commit, to the last bit, and reads what that wrote: OLD=HEAD~1
same-numbers: $(READY)
	$(RUN) tests/benchmarks/same_numbers.py $(OLD)

runs/quickstart/report.json: | $(READY)
	$(RUN) training/quickstart.py

# A community pipeline for diffusers, in the one file that its examples/community takes.
community: $(READY)
	@mkdir -p runs/community
	$(RUN) -c 'import sys; from ddpm_vlb.hub.standalone import community_source; print(community_source(), end="", file=open(sys.argv[1], "w", encoding="utf-8"))' runs/community/ddpm_likelihood.py
	@echo runs/community/ddpm_likelihood.py

# The API's pages; a warning is an error.
docs: $(DOCS)
	rm -rf runs/docs
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --builder html .ci/docs runs/docs
	@echo "runs/docs/index.html"

# The package's types, by pyright; its build by the name of basedpyright needs no Node.js of its own.
types: $(READY)
	$(RUN) -m basedpyright --pythonpath $(RUN)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	# compat: a plain path entry, which holds its own against a folder of the same name (this clone) in the working directory.
	$(RUN) -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable '.[train,codec,demo,dev]'
	@touch $(READY)

$(MINIMUM)/.ready: pyproject.toml .ci/constraints-min.txt
	$(PYTHON) -m venv $(MINIMUM)
	$(MINIMUM)/bin/python -m pip install --quiet --constraint .ci/constraints-min.txt --config-settings editable_mode=compat \
		--editable '.[train,demo]'
	@touch $@

$(DOCS): $(READY)
	$(RUN) -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable '.[docs]'
	@touch $(DOCS)

clean:
	rm -rf $(VENV) $(MINIMUM) runs
