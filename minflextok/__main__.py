from .cli.parser import main

if __name__ == "__main__":
    main()
