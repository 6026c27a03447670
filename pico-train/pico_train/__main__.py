"""`python -m pico_train`, for launchers such as torchrun."""

from pico_train.cli import main

if __name__ == "__main__":
    main()
